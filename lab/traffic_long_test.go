package lab_test

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/podlane/podlane/lab"
)

// TestTraffic_long: connections that stay are told from those that the server ends.
func TestTraffic_long(t *testing.T) {
	var end atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if end.Load() {
			panic(http.ErrAbortHandler) // without an answer
		}
		_, _ = w.Write(make([]byte, 10000))
	}))
	defer server.Close()
	for range 2 {
		r, err := lab.Traffic{URL: server.URL, Requests: 6, Rate: 10, Long: 3, Timeout: 5 * time.Second}.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		switch lost := end.Swap(true); {
		case lost && (r.LongLost != 3 || r.LongRequests != 0 || r.Failed != 6):
			t.Errorf("the server ends each: %+v", r)
		case !lost && (r.LongLost != 0 || r.LongRequests < 9 || r.Failed != 0):
			t.Errorf("the server ends none: %+v", r)
		}
	}
}
