package bpf

import "testing"

// The three shortcuts, for both families and both ways of attaching: what a pod
// sends and gets passes by netfilter's forward hook on every node.
func TestShortcut(t *testing.T) {
	for _, attach := range []Attach{TCX, Clsact} {
		t.Run(string(attach), func(t *testing.T) { shortcuts(t, newWorld(t, attach)) })
	}
}

// shortcuts starts no subtests: a test's network namespace is that of its own
// thread.
func shortcuts(t *testing.T, w *world) {
	n1 := w.nodes[0]
	for reason, to := range map[string]pod{"shortcut_local": n1.pods[1], "shortcut_direct": w.nodes[1].pods[0], "shortcut_encap": w.nodes[2].pods[0]} {
		serve(t, to.ns)
		for name, v6 := range families {
			before := w.forwarded(t)
			n1.grows(t, reason, func() { talk(t, reason, n1.pods[0].ns, to.addr(v6)) })
			if now := w.forwarded(t); now != before {
				t.Errorf("%s %s: %d packets took the normal path", name, reason, now-before)
			}
		}
	}
	for i, reason := range []string{"shortcut_in", "shortcut_decap"} {
		if m := w.nodes[1+i]; m.count(t, reason) == 0 {
			t.Errorf("%s: %s is 0", m.name, reason)
		}
	}
}

func (w *world) forwarded(t testing.TB) (n int) {
	for _, m := range w.nodes {
		n += m.forwarded(t)
	}
	return n
}
