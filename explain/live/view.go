package live

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/explain"
)

//go:embed view.html
var viewPage []byte

// Viewer serves one page that shows a lab: nodes, pods, Services, and new flows
// per second on the arrows between them. It only reads.
type Viewer struct {
	Name string // of the lab

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
		_, _ = w.Write(viewPage)
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
	c, err := Read(r.Context(), v.Name)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	conns, err := c.Connections(r.Context(), "")
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	out := c.view()
	out.Flows = v.rates(conns)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out)
}

func (c *Cluster) view() view {
	out := view{Name: c.Name, Nodes: []viewNode{}, Pods: []viewPod{}, Services: []viewService{}}
	for _, n := range c.Status.Nodes {
		out.Nodes = append(out.Nodes, viewNode{n.Name, n.Addresses})
	}
	for _, p := range c.Status.Pods {
		out.Pods = append(out.Pods, viewPod{p.Namespace + "/" + p.Name, p.Node, p.IPs, p.Ready})
	}
	for _, s := range c.Status.Services {
		out.Services = append(out.Services, viewService{s.Namespace + "/" + s.Name, s.ClusterIPs, s.Ports, s.Ready > 0})
	}
	return out
}

// rates counts the connections that were not there at the last look.
func (v *Viewer) rates(conns []Connection) []viewFlow {
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
	answer, err := v.answer(r.Context(), &a)
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

func (v *Viewer) answer(ctx context.Context, a *explain.Access) (*explain.Answer, error) {
	c, err := Read(ctx, v.Name)
	if err != nil {
		return nil, err
	}
	if err := c.Ask(); err != nil {
		return nil, err
	}
	c.firstPort(a)
	return explain.Explain(c.World(), *a)
}

// firstPort takes the first port of a Service that has several.
func (c *Cluster) firstPort(a *explain.Access) {
	name, is := strings.CutPrefix(a.To, "svc/")
	ns, name, ok := strings.Cut(name, "/")
	s := c.Snapshot.Services.Get(cluster.Key{Namespace: ns, Name: name})
	if !is || !ok || s == nil || len(s.Ports) == 0 {
		return
	}
	a.To, a.Protocol = fmt.Sprintf("%s:%d", a.To, s.Ports[0].Port), s.Ports[0].Protocol
}
