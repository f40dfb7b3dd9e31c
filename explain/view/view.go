// Package view serves one page that shows a cluster as a picture, with what flows
// in it, and explains what is clicked. It only reads, and loads nothing from
// elsewhere.
package view

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/explain"
	"github.com/podlane/podlane/explain/observe"
)

//go:embed page.html
var page []byte

// Source is what the page shows.
type Source interface {
	// Look gives the cluster's state, and the connections that there are.
	Look(context.Context) (*cluster.Snapshot, []observe.Connection, error)
	Explain(context.Context, explain.Access) (*explain.Answer, error)
}

// Viewer serves the page: nodes, pods, Services, and new flows per second on the
// arrows between them.
type Viewer struct {
	Name   string // of the cluster
	Source Source

	mu   sync.Mutex
	seen map[string]bool // flows of the last look
	last time.Time
}

// view is what the page draws.
type view struct {
	Name     string        `json:"name"`
	Nodes    []viewNode    `json:"nodes"`
	Pods     []viewPod     `json:"pods"`
	Services []viewService `json:"services"`
	Flows    []viewFlow    `json:"flows"`
	More     int           `json:"more"` // pods and Services that are not drawn
}

type viewNode struct {
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"`
}

type viewPod struct {
	Name  string   `json:"name"`
	Node  string   `json:"node"`
	IPs   []string `json:"ips"`
	Ready bool     `json:"ready"`
}

type viewService struct {
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"`
	Ports     []string `json:"ports"`
	Ready     bool     `json:"ready"`
}

// viewFlow is an arrow.
type viewFlow struct {
	From    string  `json:"from"`
	Service string  `json:"service"`
	Pod     string  `json:"pod"`
	Rate    float64 `json:"rate"` // new flows a second
}

// Serve answers on the listener, which should be on loopback, until ctx ends.
func (v *Viewer) Serve(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'")
		_, _ = w.Write(page)
	})
	mux.HandleFunc("GET /api/cluster", v.cluster)
	mux.HandleFunc("GET /api/explain", v.explain)
	server := &http.Server{Handler: local(mux), ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// local refuses requests that a page of another site makes by giving its name the
// address of this machine.
func local(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			http.Error(w, "this page is for this machine only", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (v *Viewer) cluster(w http.ResponseWriter, r *http.Request) {
	s, conns, err := v.Source.Look(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	out := picture(v.Name, s)
	out.Flows = v.rates(conns)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out)
}

// most bounds the pods, and the Services, that are drawn: a page with more shows
// nothing any more.
const most = 400

func picture(name string, s *cluster.Snapshot) view {
	out := view{Name: name, Nodes: []viewNode{}, Pods: []viewPod{}, Services: []viewService{}}
	for _, k := range s.Nodes.Keys() {
		out.Nodes = append(out.Nodes, viewNode{k.Name, texts(s.Nodes.Get(k).Addresses)})
	}
	for _, k := range s.Pods.Keys() {
		if p := s.Pods.Get(k); len(out.Pods) < most && p.Node != "" && !p.HostNetwork && !p.Done {
			out.Pods = append(out.Pods, viewPod{k.String(), p.Node, texts(p.IPs), p.Ready})
		}
	}
	for _, k := range s.Services.Keys() {
		if len(out.Services) >= most {
			break
		}
		svc := s.Services.Get(k)
		shown := viewService{Name: k.String(), Addresses: texts(svc.ClusterIPs), Ports: []string{}, Ready: hasReady(s, k)}
		for _, p := range svc.Ports {
			shown.Ports = append(shown.Ports, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
		}
		out.Services = append(out.Services, shown)
	}
	out.More = max(0, s.Pods.Len()-most) + max(0, s.Services.Len()-most)
	return out
}

func texts(addrs []netip.Addr) []string {
	list := []string{}
	for _, a := range addrs {
		list = append(list, a.String())
	}
	return list
}

func hasReady(s *cluster.Snapshot, k cluster.Key) bool {
	of := s.Endpoints.Get(k)
	if of == nil {
		return false
	}
	for _, slice := range of.Slices {
		if slices.ContainsFunc(slice.Endpoints, func(e cluster.Endpoint) bool { return e.Ready }) {
			return true
		}
	}
	return false
}

// rates counts the connections that were not there at the last look.
func (v *Viewer) rates(conns []observe.Connection) []viewFlow {
	v.mu.Lock()
	defer v.mu.Unlock()
	now, seen, counts := time.Now(), map[string]bool{}, map[[3]string]int{}
	for _, c := range conns {
		id := fmt.Sprint(c.Node, c.Protocol, c.Source, c.To)
		seen[id] = true
		if !v.seen[id] && v.seen != nil {
			counts[[3]string{c.From, c.Service, c.Pod}]++
		}
	}
	span := max(now.Sub(v.last).Seconds(), 0.1)
	v.seen, v.last = seen, now
	flows := []viewFlow{}
	for k, n := range counts {
		flows = append(flows, viewFlow{k[0], k[1], k[2], float64(n) / span})
	}
	slices.SortFunc(flows, func(a, b viewFlow) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Pod, b.Pod))
	})
	return flows
}

// explain answers for a click on a pod or node and on a Service or pod.
func (v *Viewer) explain(w http.ResponseWriter, r *http.Request) {
	a := explain.Access{From: r.FormValue("from"), To: r.FormValue("to"), Protocol: cluster.TCP}
	s, _, err := v.Source.Look(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	firstPort(s, &a)
	answer, err := v.Source.Explain(r.Context(), a)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	var text, svg strings.Builder
	if err := errors.Join(answer.Text(&text), answer.SVG(&svg)); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]string{"verdict": string(answer.Verdict), "text": text.String(), "svg": svg.String()})
}

// firstPort takes the first port of a Service that has several.
func firstPort(s *cluster.Snapshot, a *explain.Access) {
	name, is := strings.CutPrefix(a.To, "svc/")
	ns, name, ok := strings.Cut(name, "/")
	svc := s.Services.Get(cluster.Key{Namespace: ns, Name: name})
	if !is || !ok || svc == nil || len(svc.Ports) == 0 {
		return
	}
	a.To, a.Protocol = fmt.Sprintf("%s:%d", a.To, svc.Ports[0].Port), svc.Ports[0].Protocol
}
