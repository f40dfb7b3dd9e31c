package agent

import (
	"errors"
	"net/http/httptest"
	"testing"
	"time"
)

// TestStopped: only what stops all pods makes the node unready.
func TestStopped(t *testing.T) {
	some := errors.New("a route is in use")
	for _, c := range []struct {
		name          string
		served, found bool
		told          bool
		pods          string
		err           error
		want          string
	}{
		{"all is well", false, false, false, "", nil, ""},
		{"a new node", false, false, false, "", some, some.Error()},
		{"a node that has booted", true, false, false, "", some, some.Error()},
		{"a new agent on a node that serves", true, true, false, "", some, ""},
		{"a node that serves", false, false, true, "", some, ""},
		{"no podCIDR", true, true, true, "no podCIDR", some, "no podCIDR"},
	} {
		s := &serving{served: c.served}
		if c.told {
			s.last = time.Now()
		}
		if got := s.stopped(c.pods, &links{found: c.found}, c.err); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestReadyz: an agent is ready when it has applied all once.
func TestReadyz(t *testing.T) {
	some := errors.New("a route is in use")
	s := newServing(Config{})
	s.unready.Store(nil)
	for i, c := range []struct {
		err  error
		want int
	}{{some, 503}, {some, 503}, {nil, 200}, {some, 200}} {
		s.tried(c.err)
		w := httptest.NewRecorder()
		s.readyz(w, httptest.NewRequest("GET", "/readyz", nil))
		if w.Code != c.want {
			t.Errorf("turn %d: %d, want %d", i, w.Code, c.want)
		}
	}
}
