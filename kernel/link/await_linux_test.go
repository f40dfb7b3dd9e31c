package link

import "testing"

// TestAwaitPod: after it, both ends take packets to their addresses. How often
// they did not before it is the machine's business, and logged.
func TestAwaitPod(t *testing.T) {
	h := node(t)
	const tries = 50
	early := 0
	for range tries {
		_, socket := addPod(t, h)
		reach(t, h, hostSide())
		pod, err := newConn(socket)
		if err != nil {
			t.Fatal(err)
		}
		local := func() bool { return pod.local(podSpec.Addrs[1]) && h.conn.local(podSpec.Gateways[1]) }
		if !local() {
			early++
		}
		h.AwaitPod(podSpec, socket)
		if !local() {
			t.Fatal("the addresses are not usable")
		}
		if h.conn.local(podSpec.Addrs[1]) {
			t.Fatal("the pod's address is local on the node: the question is wrong")
		}
		reach(t, h, NewState())
	}
	t.Logf("not usable at once: %d of %d", early, tries)
}
