package link

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/internal/nettest"
)

// TestWatch_ends: a watcher that cannot tell of all ends with an error, and the next one
// hears of what is on links that came meanwhile.
func TestWatch_ends(t *testing.T) {
	for name, c := range map[string]struct {
		harm func(testing.TB, int)
		want error
	}{"notices are lost": {nettest.Overflow, unix.ENOBUFS}, "the socket fails": {nettest.Break, unix.ENOTSOCK}} {
		t.Run(name, func(t *testing.T) {
			h := node(t)
			nettest.Run(t, "sh", "-ec", "for f in /proc/sys/net/ipv6/conf/*/accept_dad; do echo 0 > $f; done")
			notices, err := h.Watch(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			quiet(t, notices, time.Second)
			c.harm(t, nettest.Listener(t, unix.NETLINK_ROUTE))
			want := vtep(1)
			reach(t, h, want)
			if err := ending(t, h, notices); !errors.Is(err, c.want) {
				t.Errorf("it ends with %v, want %v", err, c.want)
			}
			reach(t, h, want)
			if notices, err = h.Watch(t.Context()); err != nil {
				t.Fatal(err)
			}
			quiet(t, notices, 1500*time.Millisecond)
			nettest.Run(t, "ip", "neigh", "del", "10.244.1.0", "dev", "pl-vxlan")
			if !noticed(notices) {
				t.Error("no notice of the neighbour")
			}
		})
	}
}

// ending gives the error with which a watcher ends, while there is more and more to tell.
func ending(t *testing.T, h *Handle, notices <-chan error) error {
	t.Helper()
	for i := range 1000 {
		reach(t, h, vtep(1+i%2))
		select {
		case err := <-notices:
			if err == nil {
				continue
			}
			if _, more := <-notices; more {
				t.Error("a notice after the end")
			}
			return err
		default:
		}
	}
	return errors.New("nothing")
}
