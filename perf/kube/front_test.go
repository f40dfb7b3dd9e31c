package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
)

// refuses is an API server that refuses the first Services it is to make, with the words of the real one, and keeps the ports that each asked for.
func refuses(t *testing.T, times int, reason string) (*api, *[]int32) {
	t.Helper()
	asked := &[]int32{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s := &corev1.Service{}
		if err := json.Unmarshal(body, s); err != nil || r.Method != http.MethodPost || !strings.HasSuffix(r.URL.Path, "/services") {
			t.Errorf("%s %s: %v", r.Method, r.URL, err)
		}
		*asked = append(*asked, s.Spec.Ports[0].NodePort)
		w.Header().Set("Content-Type", "application/json")
		if len(*asked) > times {
			w.WriteHeader(http.StatusCreated)
			_, _ = w.Write(body)
			return
		}
		w.WriteHeader(http.StatusUnprocessableEntity)
		fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422,"message":"Service \"server\" is invalid: spec.ports[0].nodePort: Invalid value: %d: %s"}`, (*asked)[0], reason)
	}))
	t.Cleanup(server.Close)
	core, err := restClient(&rest.Config{Host: server.URL}, corev1.SchemeGroupVersion, "/api")
	if err != nil {
		t.Fatal(err)
	}
	return &api{core: core}, asked
}

// A node port that another Service has is drawn anew, and the paths are of what was drawn last. Other refusals, and a
// cluster that has no port left, are told.
func TestCreateFront(t *testing.T) {
	const taken = "provided port is already allocated"
	for _, c := range []struct {
		name    string
		times   int
		reason  string
		asks    int
		refused bool
	}{
		{"free", 0, taken, 1, false},
		{"taken twice", 2, taken, 3, false},
		{"all taken", 1000, taken, nodePortDraws, true},
		{"outside of the range", 1000, "provided port is not in the valid range. The range of valid ports is 80-90", 1, true},
	} {
		a, asked := refuses(t, c.times, c.reason)
		r := &run{api: a, plan: fixed(NodePort)}
		err := r.createFront(context.Background())
		if (err != nil) != c.refused || len(*asked) != c.asks || err != nil && !strings.Contains(err.Error(), c.reason) {
			t.Errorf("%s: %v, asked for %v", c.name, err, *asked)
		}
		if last := (*asked)[len(*asked)-1]; int(last) != r.nodePorts {
			t.Errorf("%s: the paths go to %d, and the Service was made with %d", c.name, r.nodePorts, last)
		}
	}
}

// The address comes late, as a name or an address of the family asked for, or never.
func TestAwaitBalancer(t *testing.T) {
	for _, c := range []struct {
		name, ingress string
		after         int // questions
		ipv6          bool
		want, failed  string
	}{
		{"an address", `{"ip":"198.51.100.7"}`, 1, false, "198.51.100.7", ""},
		{"later", `{"ip":"198.51.100.7"}`, 2, false, "198.51.100.7", ""},
		{"a name", `{"hostname":"lb.example"}`, 1, false, "lb.example", ""},
		{"of both families", `{"ip":"198.51.100.7"},{"ip":"2001:db8::7"}`, 1, true, "2001:db8::7", ""},
		{"of the other family", `{"ip":"198.51.100.7"}`, 1, true, "", "the load balancer has no IPv6 address"},
		{"never", ``, 1, false, "", "no load balancer gave the Service an address"},
	} {
		asked := 0
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			ingress := c.ingress
			if asked++; asked < c.after {
				ingress = ""
			}
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"kind":"Service","apiVersion":"v1","status":{"loadBalancer":{"ingress":[%s]}}}`, ingress)
		}))
		core, err := restClient(&rest.Config{Host: server.URL}, corev1.SchemeGroupVersion, "/api")
		if err != nil {
			t.Fatal(err)
		}
		r := &run{api: &api{core: core}, plan: fixed(Balancer), Options: Options{IPv6: c.ipv6, Timeout: 600 * time.Millisecond}}
		got, err := r.awaitBalancer(t.Context())
		server.Close()
		if c.failed != "" {
			if err == nil || !strings.Contains(err.Error(), c.failed) {
				t.Errorf("%s: %q, %v", c.name, got, err)
			}
		} else if err != nil || got != c.want || asked != c.after {
			t.Errorf("%s: %q after %d questions, %v", c.name, got, asked, err)
		}
	}
}
