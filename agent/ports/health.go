// Package ports is what other programs ask a node's service proxy over HTTP, on
// the ports, paths and metric names that tools know from kube-proxy: health,
// metrics, and the health of single Services. It changes nothing: what it says
// it is told by the agent's loop.
package ports

import (
	"encoding/json"
	"net/http"
	"sync"
	"time"
)

// Late is how long a change may wait to be brought to the kernel before the proxy
// counts as unhealthy: twice kube-proxy's sync period.
const Late = 60 * time.Second

// families are those of the proxy, by the API's names.
var families = [...]string{"IPv4", "IPv6"}

// Health is whether the proxy keeps up. It is safe for use by several
// goroutines.
type Health struct {
	mu      sync.Mutex
	queued  time.Time // of the oldest change that is not in the kernel; zero: none
	updated time.Time // zero: never
	leaving bool
	unknown bool // the own node is not in the cluster
}

// Queued says that a change came that the kernel does not have yet.
func (h *Health) Queued() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.queued.IsZero() {
		h.queued = time.Now()
	}
}

// Updated says that the kernel has all that is known.
func (h *Health) Updated() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.queued, h.updated = time.Time{}, time.Now()
}

// SetNode says whether the node is in the cluster, and whether it is about to
// leave it.
func (h *Health) SetNode(known, leaving bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.unknown, h.leaving = !known, leaving
}

// Healthy says whether the proxy keeps up. One that is only starting does.
func (h *Health) Healthy() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.healthy(time.Now())
}

func (h *Health) healthy(now time.Time) bool {
	return h.queued.IsZero() || now.Sub(h.queued) < Late
}

// healthText is the answer of kube-proxy's /healthz and /livez.
type healthText struct {
	LastUpdated  time.Time               `json:"lastUpdated"`
	CurrentTime  time.Time               `json:"currentTime"`
	NodeEligible *bool                   `json:"nodeEligible,omitempty"`
	Healthy      bool                    `json:"healthy"`
	Status       map[string]familyHealth `json:"status,omitempty"`
}

type familyHealth struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

// text gives the answer and whether it is a good one. /healthz is of the node too,
// /livez of the proxy alone.
func (h *Health) text(ofNode bool) (t healthText, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t.CurrentTime = time.Now()
	t.Healthy, t.LastUpdated = h.healthy(t.CurrentTime), h.updated
	if !h.updated.IsZero() {
		t.Status = map[string]familyHealth{}
		for _, f := range families {
			t.Status[f] = familyHealth{h.updated, t.Healthy}
		}
	}
	ok = t.Healthy
	if ofNode {
		eligible := !h.leaving && !h.unknown
		t.NodeEligible = &eligible
		ok = ok && eligible
	}
	if ok {
		t.LastUpdated = t.CurrentTime // as kube-proxy: recent where all is well
	}
	return t, ok
}

func (h *Health) serve(ofNode bool, count func(code string)) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		t, ok := h.text(ofNode)
		code := http.StatusOK
		if !ok {
			code = http.StatusServiceUnavailable
		}
		count(map[bool]string{true: "200", false: "503"}[ok])
		answerJSON(w, code, t)
	}
}

func answerJSON(w http.ResponseWriter, code int, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write(data) // the client may have gone
}
