package agent

import (
	"net"
	"net/netip"
	"testing"

	"github.com/podlane/podlane/cni"
	"github.com/podlane/podlane/hostport"
	"github.com/podlane/podlane/internal/nettest"
)

// hostPortPod is a pod with UDP port 53 of the node, by the last part of its addresses.
func hostPortPod(v4, v6 string) cni.Allocation {
	return cni.Allocation{Addrs: []netip.Addr{netip.MustParseAddr(v4), netip.MustParseAddr(v6)}, Ports: []cni.PortMapping{{HostPort: 53, ContainerPort: 5353, Protocol: "udp"}}}
}

// publish brings pods' ports to the kernel, then looks at the flows, as the agent does.
func (w *world) publish(h *hostPorts, pods ...cni.Allocation) {
	w.t.Helper()
	if err := h.apply(w.conn, pods, w.last); err != nil {
		w.t.Fatal(err)
	}
	w.lookPorts(h)
}

// lookPorts looks at the flows if something was brought to the kernel.
func (w *world) lookPorts(h *hostPorts) {
	w.t.Helper()
	select {
	case h.flows.ports.due = <-h.flows.ports.applied:
	default:
	}
	if err := h.flows.lookPorts(); err != nil {
		w.t.Fatal(err)
	}
}

// TestFlows_hostPort: clients that send from one port for ever reach the pod that has
// the port of the node now: one that began before there was a pod, and one of a pod that
// was replaced (kubernetes#95258). Nothing leads to a pod that is gone.
func TestFlows_hostPort(t *testing.T) {
	first, second := hostPortPod("10.244.0.2", "fd00:244::2"), hostPortPod("10.244.0.3", "fd00:244::3")
	for to, answers := range map[string][2]string{"192.0.2.1:53": {"10.244.0.2", "10.244.0.3"}, "[fd00:2::1]:53": {"fd00:244::2", "fd00:244::3"}} {
		t.Run(to, func(t *testing.T) {
			w := newWorld(t)
			w.set(2)
			v6 := netip.MustParseAddrPort(to).Addr().Is6()
			direct := w.dial(map[bool]string{false: "10.244.0.3:5353", true: "[fd00:244::3]:5353"}[v6])
			service := w.dial(map[bool]string{false: "192.0.2.1:30053", true: "[fd00:2::1]:30053"}[v6])
			h := w.hostPorts()
			early := w.dial(to)
			want := func(what string, c *net.UDPConn, answer string) {
				t.Helper()
				got := ask(c)
				for range 3 { // an ICMP error may be of the datagram before
					if got != answer {
						got = ask(c)
					}
				}
				if got != answer {
					t.Errorf("%s: answered by %s, want %s", what, got, answer)
				}
			}
			want("past all", direct, answers[1])
			want("a Service", service, answers[0])
			want("no pod yet", early, "refused")
			w.flowThere(v6, early, true)
			good := w.ids(v6)
			w.publish(h, first)
			late := w.dial(to)
			want("the pod is there, began before", early, answers[0])
			want("the pod is there", late, answers[0])
			id := w.ids(v6)[local(late)]
			w.publish(h, first)
			h.doubt()
			w.publish(h, first)
			if now := w.ids(v6)[local(late)]; now != id || id == 0 {
				t.Errorf("a good flow was touched: %d, was %d", now, id)
			}
			w.publish(h, second)
			want("replaced, began before", early, answers[1])
			want("replaced", late, answers[1])
			w.publish(h)
			w.flowThere(v6, late, false)
			want("no pod left", late, "refused")
			w.publish(h, first)
			want("a pod again", late, answers[0])
			w.begin()
			h = w.hostPorts() // another agent, and the pod has gone meanwhile
			w.publish(h)
			w.flowThere(v6, late, false)
			w.publish(h, first)
			want("a pod once more", late, answers[0])
			if err := h.apply(w.conn, nil, w.last); err != nil { // and the agent ends before it looks at the flows
				t.Fatal(err)
			}
			w.flowThere(v6, late, true)
			w.begin()
			w.publish(w.hostPorts())
			w.flowThere(v6, late, false)
			if now := w.ids(v6); now[local(direct)] != good[local(direct)] || now[local(service)] != good[local(service)] || good[local(direct)] == 0 || good[local(service)] == 0 {
				t.Error("flows that are not of hostPorts were touched")
			}
		})
	}
}

// TestFlows_hostPortOneFamily: while IPv6's ports cannot be applied, IPv4's stale flows are
// forgotten, and IPv6's as soon as they can.
func TestFlows_hostPortOneFamily(t *testing.T) {
	w := newWorld(t)
	w.set(2)
	h := w.hostPorts()
	w.publish(h, hostPortPod("10.244.0.2", "fd00:244::2"))
	to := map[bool]*net.UDPConn{false: w.dial("192.0.2.1:53"), true: w.dial("[fd00:2::1]:53")}
	for v6, c := range to {
		for range 20 { // a link just made loses packets for up to a second
			if ask(c) != "nothing" {
				break
			}
		}
		w.flowThere(v6, c, true)
	}
	nettest.Run(t, "nft", "delete", "table", "ip6", hostport.Name)
	release := hold(t, "ip6 "+hostport.Name)
	for range 2 { // tries
		if err := h.apply(w.conn, nil, w.last); err == nil {
			t.Fatal("IPv6 is applied, so the test shows nothing")
		}
		w.lookPorts(h)
		w.flowThere(false, to[false], false)
		w.flowThere(true, to[true], true)
	}
	release()
	w.publish(h)
	w.flowThere(true, to[true], false)
}

// hostPorts are those of an agent that begins.
func (w *world) hostPorts() *hostPorts { return &hostPorts{flows: w.flows, node: "n1"} }

// flowThere demands that a client has a flow, or none.
func (w *world) flowThere(v6 bool, c *net.UDPConn, want bool) {
	w.t.Helper()
	if is := w.ids(v6)[local(c)] != 0; is != want {
		w.t.Errorf("a flow of %s: %v, want %v", c.LocalAddr(), is, want)
	}
}
