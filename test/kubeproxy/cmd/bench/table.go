package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

func (r *result) print(w io.Writer) {
	fmt.Fprintln(w, "Service proxies beside each other;", r.API)
	for _, k := range slices.Sorted(maps.Keys(r.Machine)) {
		fmt.Fprintf(w, "%s: %s\n", k, r.Machine[k])
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "\nSERVICES\tPROXY\tCOLD\tCOLD, FROM LISTS\tENDPOINT CHANGED p50 / p99 (n)\tSERVICE ADDED p50 / p99 (n)\tRESTART\tCHURN\tPEAK MEMORY\t")
	for _, c := range r.Cells {
		fmt.Fprintf(t, "%d x %d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.Services, c.Endpoints, c.title(), c.Cold, c.Lists, c.Endpoint, c.Service,
			c.Restart, c.churn(), c.memory(), c.Note)
	}
	_ = t.Flush()
	for _, l := range r.Latency {
		fmt.Fprintf(w, "\nconnect() through a Service, %s, %d Services: %s, max %s", (&cell{Proxy: l.Proxy}).title(), l.Services, l.Connect, text(l.Connect.Max))
	}
	if l := r.Latency; len(l) > 1 && l[0].Proxy == l[1].Proxy && l[0].Connect.P50 > 0 {
		fmt.Fprintf(w, "\nwith %d Services p50 is %+.1f %% beside that with %d", l[1].Services, 100*(l[1].Connect.P50/l[0].Connect.P50-1), l[0].Services)
	}
	r.ratios(w)
	fmt.Fprintf(w, "\nthe whole run: %.0f s\n", r.TookSecond)
}

// ratios says how many times kube-proxy takes what Podlane takes.
func (r *result) ratios(w io.Writer) {
	ours := map[int]*cell{}
	for _, c := range r.Cells {
		if c.Proxy == "podlane" {
			ours[c.Services] = c
		}
	}
	fmt.Fprintln(w)
	for _, c := range r.Cells {
		o := ours[c.Services]
		if c == o || o == nil || o.Cold.Value == 0 {
			continue
		}
		fmt.Fprintf(w, "%d x %d: %s takes", c.Services, c.Endpoints, c.title())
		if c.Cold.budget() == 0 && c.Cold.Value == 0 {
			fmt.Fprintln(w, " was not measured")
			continue
		}
		if c.Cold.Not == "" && c.Cold.Value > 0 {
			fmt.Fprintf(w, " %.0f times as long cold,", c.Cold.Value/o.Cold.Value)
		} else {
			fmt.Fprintf(w, " more than %.0f times as long cold,", c.Cold.budget()/o.Cold.Value)
		}
		if c.Endpoint.N > 0 && o.Endpoint.P50 > 0 {
			fmt.Fprintf(w, " %.0f times as long for an endpoint (p50),", c.Endpoint.P50/o.Endpoint.P50)
		}
		fmt.Fprintf(w, " %.1f times the memory\n", c.Peak/o.Peak)
	}
}

// budget is what a figure that was not reached took at least.
func (f figure) budget() float64 {
	var s string
	if _, err := fmt.Sscanf(f.Not, "not finished after %s", &s); err != nil {
		return 0
	}
	d, _ := time.ParseDuration(s)
	return d.Seconds()
}

func (c *cell) title() string {
	if c.Proxy == "podlane" {
		return "podlane"
	}
	return "kube-proxy " + c.Proxy
}

func (c *cell) memory() string {
	if c.Peak == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f MB", c.Peak/1e6)
}

func (c *cell) churn() string {
	if c.Churn.Not != "" || c.Churn.Value == 0 {
		return "-"
	}
	return fmt.Sprintf("%.3f cores", c.Churn.Value)
}

func (f figure) String() string {
	switch {
	case strings.HasPrefix(f.Not, "not tried"):
		return "not tried"
	case f.Not != "":
		return f.Not
	case f.Value == 0:
		return "-"
	}
	return text(f.Value)
}

func (s samples) String() string {
	if s.N == 0 {
		return "-"
	}
	return fmt.Sprintf("%s / %s (%d)", text(s.P50), text(s.P99), s.N)
}

func text(seconds float64) string {
	if seconds < 1e-3 {
		return fmt.Sprintf("%.1f us", seconds*1e6)
	}
	if seconds < 1 {
		return fmt.Sprintf("%.2f ms", seconds*1000)
	}
	return fmt.Sprintf("%.2f s", seconds)
}
