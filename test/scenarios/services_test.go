package scenarios

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/podlane/podlane/lab"
)

const echo = `
apiVersion: v1
kind: Service
metadata: {name: echo}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: echo}, ports: ` + ports + `}
`

// TestStaleUDP: a client that sends without a pause from one socket to a Service
// follows its endpoints: from one pod to the next, through a time without any, and
// through a time without the Service. A flow in the kernel's table that leads to a
// pod of the past would live as long as the client sends.
func TestStaleUDP(t *testing.T) {
	s := up(t, "auto")
	s.apply(echo + "---\n" + server("echo-1", "echo", "n2"))
	s.settled()
	s.look()
	address := s.targets("udp", "Service echo")
	// then has the change made under packets, which arrive again a second after a
	// node could know of the new endpoint, and are answered by it.
	then := func(name, answers string, change event) {
		t.Run(name, func(t *testing.T) {
			s := s.of(t)
			s.between(change, s.limit(), address, s.targets("udp", "pod far"), nil)
			w := s.watch("client", address)
			time.Sleep(200 * time.Millisecond)
			for target, r := range w.stop() {
				if r.By[answers] != r.Sent {
					t.Errorf("%s: answered by %v, want %s", target, r.By, answers)
				}
			}
		})
	}
	then("another pod", "echo-2", func() time.Time {
		s.apply(server("echo-2", "echo", "n3"))
		s.settled()
		s.remove(server("echo-1", "echo", "n2"))
		return time.Now()
	})
	then("no endpoint for a time", "echo-3", func() time.Time {
		s.remove(server("echo-2", "echo", "n3"))
		time.Sleep(time.Second)
		s.apply(server("echo-3", "echo", "n2"))
		return s.endpoint("echo-3")
	})
	then("no Service for a time", "echo-4", func() time.Time {
		s.remove(echo + "---\n" + server("echo-3", "echo", "n2"))
		time.Sleep(time.Second)
		s.apply(pinned(echo, s.addrs["Service echo"]) + "---\n" + server("echo-4", "echo", "n3"))
		return s.endpoint("echo-4")
	})
	then("while no agent runs", "echo-5", func() time.Time {
		s.agents(lab.AgentKill, "n1")
		s.remove(server("echo-4", "echo", "n3"))
		s.apply(server("echo-5", "echo", "n2"))
		s.endpoint("echo-5")
		began := time.Now()
		s.agents(lab.AgentStart, "n1")
		return began
	})
}

// endpoint waits until a pod is Ready, with which it is an endpoint of Services.
func (s *scene) endpoint(pod string) time.Time {
	s.eventually(10*time.Second, func() error {
		st, err := s.Status(s.Context())
		if err != nil {
			return err
		}
		for _, p := range st.Pods {
			if p.Name == pod && p.Ready {
				return nil
			}
		}
		return fmt.Errorf("pod %s is not Ready", pod)
	})
	return time.Now()
}

// pinned gives a Service's manifest with its cluster IPs.
func pinned(manifest string, ips []string) string {
	return strings.Replace(manifest, "spec: {", fmt.Sprintf("spec: {clusterIP: %q, clusterIPs: [\"%s\"], ", ips[0], strings.Join(ips, `", "`)), 1)
}
