package ports

import (
	"encoding/json"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"
)

// asked gives the status and the body of /healthz or /livez.
func asked(t *testing.T, h *Health, ofNode bool) (int, map[string]any) {
	t.Helper()
	w := httptest.NewRecorder()
	counted := ""
	h.serve(ofNode, func(code string) { counted = code })(w, nil)
	body := map[string]any{}
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
		t.Fatal(err)
	}
	if counted == "" || w.Header().Get("X-Content-Type-Options") != "nosniff" || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("counted %q, header %v", counted, w.Header())
	}
	return w.Code, body
}

func TestHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &Health{}
		want := func(what string, health, live int) {
			t.Helper()
			gotHealth, body := asked(t, h, true)
			gotLive, _ := asked(t, h, false)
			if gotHealth != health || gotLive != live {
				t.Errorf("%s: /healthz %d, want %d; /livez %d, want %d: %v", what, gotHealth, health, gotLive, live, body)
			}
		}
		want("starting", 200, 200)
		h.Queued()
		time.Sleep(Late - time.Second)
		want("a change waits", 200, 200)
		h.Queued() // another one: the oldest counts
		time.Sleep(time.Second)
		want("a change waits too long", 503, 503)
		h.Updated()
		want("done", 200, 200)
		at := time.Now()
		time.Sleep(time.Hour)
		want("nothing happens", 200, 200)
		h.SetNode(true, true)
		want("the node leaves", 503, 200)
		_, body := asked(t, h, true)
		if body["nodeEligible"] != false || body["healthy"] != true || body["lastUpdated"] != at.Format(time.RFC3339Nano) {
			t.Errorf("body %v, updated at %s", body, at)
		}
		if _, body := asked(t, h, false); body["nodeEligible"] != nil {
			t.Errorf("/livez knows of the node: %v", body)
		}
		h.SetNode(false, false)
		want("the node is unknown", 503, 200)
		h.SetNode(true, false)
		want("the node is back", 200, 200)
		_, body = asked(t, h, true)
		status, _ := body["status"].(map[string]any)
		if v4, _ := status["IPv4"].(map[string]any); len(status) != 2 || v4["healthy"] != true {
			t.Errorf("status %v", body)
		}
	})
}
