package corefile

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const kubeadm = `.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    loop
    reload
    loadbalance
}
`

const many = `# by hand
(common) {
  errors
}
.:53 dns://.:53 {
  import common
  log . "{remote} said {name}"
  hosts /etc/extra {
    10.0.0.1 db.example   # the old one
    10.0.0.2 "web.example"
    ttl 60
    fallthrough
  }
  rewrite name a.example b.example
  kubernetes cluster.local corp.local {
    endpoint_pod_names
    pods verified
  }
  forward . 192.0.2.1 tls://192.0.2.2 [2001:db8::1]:5353 { policy sequential }
  forward old.example 192.0.2.9
  forward . 192.0.2.3 {
    max_concurrent 5
  }
  cache { serve_stale 2h
    success 5000 }
}
corp.example eu.example:53 { forward . 10.1.1.1 10.1.1.2:5300
  errors }
lab.example:5353 {
  forward . 10.2.2.2
}
tls://x.example { whoami
}
file.example {
  forward . /etc/other
}
`

func TestTranslate(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       Settings
		problems   string
	}{
		{"kubeadm", kubeadm, Settings{Domain: "cluster.local", TTL: 30, Pods: "insecure", Endpoints: "all", Upstreams: []string{"/etc/resolv.conf"},
			Health: ":8080", LameDuck: "5s", Metrics: ":9153"}, ""},
		{"many", many, Settings{Domain: "cluster.local", TTL: 5, Pods: "verified", Endpoints: "all", Upstreams: []string{"192.0.2.1", "[2001:db8::1]:5353"},
			Stubs:     []Stub{{"old.example", []string{"192.0.2.9"}}, {"corp.example", []string{"10.1.1.1", "10.1.1.2:5300"}}, {"eu.example", []string{"10.1.1.1", "10.1.1.2:5300"}}},
			HostsFile: "/etc/extra", Hosts: "10.0.0.1 db.example\n10.0.0.2 web.example\n", ServeStale: "2h", LogQueries: true},
			"2:(common) 6:import 7:log 11:ttl 14:rewrite 15:kubernetes 16:endpoint_pod_names 19:forward 21:forward 22:max_concurrent 25:success 29:lab.example:5353 32:tls://x.example 35:forward"},
		{"only a stub", "corp.example { forward . 10.1.1.1\n}", Settings{Stubs: []Stub{{"corp.example", []string{"10.1.1.1"}}}, NotForward: true}, ""},
		{"the block's zone", "corp.local in-addr.arpa:53 {\nkubernetes\n}\n. {\n kubernetes\n}", Settings{Domain: "corp.local", TTL: 5, Pods: "disabled", Endpoints: "all", NotForward: true}, "5:kubernetes"},
		{"nothing", "# nothing", Settings{NotForward: true}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Translate(c.text)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, *got, cmpopts.IgnoreFields(Settings{}, "Problems"), cmpopts.IgnoreUnexported(Settings{})); d != "" {
				t.Error(d)
			}
			var lines []string
			for _, p := range got.Problems {
				t.Log(p)
				lines = append(lines, fmt.Sprintf("%d:%s", p.Line, strings.Fields(p.Text)[0]))
			}
			if strings.Join(lines, " ") != c.problems {
				t.Errorf("problems %v, want %s", lines, c.problems)
			}
		})
	}
}

func TestParse_errors(t *testing.T) {
	for text, want := range map[string]string{
		". {\n errors\n": "line 1: { is not closed", "\n.": `line 2: no { behind "."`, `. { a "b }`: "line 1: a quote", ". { a {\n b\n }": "line 1: { is not closed",
	} {
		if _, err := Translate(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

// FuzzTranslate: no text makes it panic, and every directive that is not
// understood is named by a line of the text.
func FuzzTranslate(f *testing.F) {
	f.Add(kubeadm)
	f.Add(many)
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Translate(text)
		if err != nil {
			return
		}
		n := strings.Count(text, "\n") + 1
		for _, p := range s.Problems {
			if p.Line < 1 || p.Line > n {
				t.Errorf("%v of %d lines", p, n)
			}
		}
	})
}
