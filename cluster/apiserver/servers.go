// Package apiserver knows where the cluster's API servers are and asks another one
// when one does not answer. It is no client: it is the last step of a client's
// transport, and what it knows comes from who follows the cluster.
package apiserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/podlane/podlane/cluster"
)

// Name is the name by which every API server of a cluster is known in its
// certificate, whatever its address.
const Name = "kubernetes.default.svc"

// backAfter is how long another server is asked before the first one is tried again.
const backAfter = time.Minute

// Servers are the API servers of a cluster: a first one, which was found when the
// agent started, and those that the Service "kubernetes" leads to.
type Servers struct {
	first string // host:port
	why   string // how the first was found
	path  string // file of the others, for an agent that starts while the first is away; "" is none
	log   *slog.Logger

	mu     sync.Mutex
	others []string
	at     string    // host:port that is asked; "" is the first
	since  time.Time // that it is not the first
}

// document is what is on disk.
type document struct {
	Version int      `json:"version"`
	Others  []string `json:"endpoints"`
}

// New gives the Servers of a first one, host:port, and of those that an agent before
// this one has written down in dir.
func New(first, why, dir string, log *slog.Logger) (*Servers, error) {
	s := &Servers{first: first, why: why, log: log}
	if dir == "" {
		return s, nil
	}
	s.path = filepath.Join(dir, "api-servers.v1.json")
	text, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	var d document
	if err == nil {
		err = json.Unmarshal(text, &d)
	}
	if err != nil {
		return s, fmt.Errorf("API servers of before: %s: %w", s.path, err)
	}
	s.others = d.Others
	return s, nil
}

// Endpoints gives what the Service "kubernetes" leads to.
func Endpoints(snapshot *cluster.Snapshot) []netip.AddrPort {
	of := snapshot.Endpoints.Get(cluster.Key{Namespace: "default", Name: "kubernetes"})
	if of == nil {
		return nil
	}
	var out []netip.AddrPort
	for _, slice := range of.Slices {
		for _, port := range slice.Ports {
			for _, e := range slice.Endpoints {
				if port.Name == "https" && e.Ready {
					out = append(out, netip.AddrPortFrom(e.Address, port.Port))
				}
			}
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

// Learn takes the servers that there are now. None is no news: then the API would
// not have told it.
func (s *Servers) Learn(found []netip.AddrPort) {
	if s == nil || len(found) == 0 {
		return
	}
	var others []string
	for _, a := range found {
		others = append(others, a.String())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Equal(others, s.others) {
		return
	}
	s.others = others
	if s.path == "" {
		return
	}
	text, err := json.Marshal(document{1, others})
	if err == nil {
		err = os.WriteFile(s.path+".new", append(text, '\n'), 0o600)
	}
	if err == nil {
		err = os.Rename(s.path+".new", s.path)
	}
	if err != nil {
		s.log.Warn("API servers", "err", err)
	}
}

// InUse says which server is asked, and why that one.
func (s *Servers) InUse() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == "" {
		return fmt.Sprintf("https://%s (%s)", s.first, s.why)
	}
	return fmt.Sprintf("https://%s (an endpoint of the Service kubernetes, since %s does not answer since %s)", s.at, s.first, s.since.UTC().Format(time.RFC3339))
}

// candidates gives the servers in the order in which they are asked: the one in use,
// the first, the others.
func (s *Servers) candidates() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := []string{s.first}
	if s.at != "" && time.Since(s.since) < backAfter {
		list = []string{s.at, s.first}
	}
	for _, o := range s.others {
		if !slices.Contains(list, o) {
			list = append(list, o)
		}
	}
	return list
}

// answered notes who did.
func (s *Servers) answered(host string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if host == s.first {
		if s.at != "" {
			s.log.Info("the API server that was found first answers again", "server", host)
		}
		s.at = ""
		return
	}
	if s.at != host {
		s.log.Warn("API server", "server", host, "because", s.first+" does not answer")
	}
	s.at, s.since = host, time.Now()
}

// Transport asks the first server by one way and the others by another, whose
// certificates are those of Name.
func (s *Servers) Transport(first, others http.RoundTripper) http.RoundTripper {
	return transport{s, first, others}
}

type transport struct {
	*Servers
	one, other http.RoundTripper
}

// RoundTrip asks one server after the other, where the request can be repeated: one
// without a body, as all that follow something are.
func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	var errs []error
	for _, host := range t.candidates() {
		way, again := t.one, r
		if host != t.first {
			way, again = t.other, r.Clone(r.Context())
			again.URL.Host, again.Host = host, ""
		}
		resp, err := way.RoundTrip(again)
		if err == nil {
			t.answered(host)
			return resp, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", host, err))
		if r.Body != nil && r.Body != http.NoBody || r.Context().Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}
