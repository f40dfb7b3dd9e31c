package kube

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestReporter_passes: neither a condition of a Node that is gone, nor an Event that was
// stored though its answer was lost, nor one that the server refuses keeps what comes
// after it from being written.
func TestReporter_passes(t *testing.T) {
	got := make(chan string, 100)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		code, reason := http.StatusCreated, ""
		switch {
		case r.Method == http.MethodPatch:
			code, reason = http.StatusNotFound, "NotFound"
			got <- "condition"
		case strings.Contains(string(body), "first"):
			code, reason = http.StatusConflict, "AlreadyExists"
			got <- "first"
		case strings.Contains(string(body), "refused"):
			code, reason = http.StatusUnprocessableEntity, "Invalid"
			got <- "refused"
		default:
			if strings.Contains(string(body), strings.Repeat("x", mostMessage)) {
				t.Error("the message is longer than the server takes")
			}
			got <- "last"
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		status := map[bool]string{true: "Success", false: "Failure"}[reason == ""]
		fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":%q,"reason":%q,"code":%d}`, status, reason, code)
	}))
	defer s.Close()
	r, err := NewReporter(Options{Kubeconfig: kubeconfig(t, server(strings.TrimPrefix(s.URL, "http://"))), Node: "n1", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	r.Condition(true, "Ready", "all is well")
	r.Event("uid", false, "First", "first")
	r.Event("uid", false, "Refused", "refused")
	r.Event("uid", false, "Last", strings.Repeat("x", 2*mostMessage))
	go func() { _ = r.Run(t.Context()) }()
	for _, want := range []string{"condition", "first", "refused", "last"} {
		select {
		case what := <-got:
			if what != want {
				t.Fatalf("%s is written, want %s", what, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s is not written", want)
		}
	}
}
