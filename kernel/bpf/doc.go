// Package bpf is the tc programs of the fast path and the maps they read: Open
// loads and pins them, Apply brings maps and devices to a fastpath.State. It
// decides nothing (overlay/fastpath does), and the normal path does not need it.
package bpf
