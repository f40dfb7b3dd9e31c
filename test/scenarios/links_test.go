package scenarios

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// netup does what a node's network manager does when the underlay is up again.
const netup = `ip link set eth0 up
for a in $keep; do ip addr replace $a dev eth0 nodad; done
ip route replace default via 192.168.200.254; ip -6 route replace default via fd00:192:168:200::fe; `

const netdown = `keep=$(ip -o addr show dev eth0 scope global | awk '{print $4}'); ip link set eth0 down; `

// TestLinks: what happens to a node's links, routes and tables by other hands.
func TestLinks(t *testing.T) {
	for _, overlay := range []string{"direct", "vxlan"} {
		t.Run(overlay, func(t *testing.T) {
			s := up(t, overlay)
			run := func(name string, f func(s *scene)) { t.Run(name, func(t *testing.T) { f(s.of(t)) }) }
			run("nothing", func(s *scene) { s.undisturbed(func() time.Time { return time.Time{} }) })
			run("underlay flap", func(s *scene) { s.disturbLink(s.after("n1", netdown+"sleep 0.3; "+netup+now)) })
			// As systemd-networkd does at its restart, without ManageForeignRoutes=no.
			run("foreign routes and neighbours removed", func(s *scene) {
				s.disturbNode(s.once("n1", "ip route flush proto 112; ip -6 route flush proto 112; ip neigh flush nud permanent 2>/dev/null || true"))
			})
			run("forwarding turned off", func(s *scene) { // as "sysctl --system" does
				s.disturbNode(s.once("n1", "echo 0 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv6/conf/all/forwarding"))
			})
			run("MTU lowered", func(s *scene) { s.mtu() })
			if overlay == "vxlan" {
				run("overlay flap", func(s *scene) {
					s.disturbLink(s.after("n1", "ip link set pl-vxlan down; sleep 0.2; ip link set pl-vxlan up; "+now))
				})
				run("overlay's device deleted", func(s *scene) { s.disturbLink(s.once("n1", "ip link delete pl-vxlan")) })
				run("overlay's MAC changed", func(s *scene) { s.disturbLink(s.once("n1", "ip link set pl-vxlan address 02:00:00:00:00:01")) })
				run("overlay's FDB flushed", func(s *scene) { s.disturbLink(s.once("n1", "bridge fdb flush dev pl-vxlan")) })
			}
			// Last: what began without rules stays in the flow table untranslated, for two
			// minutes with TCP, and a later connection from the same port meets it.
			run("nft flush ruleset", func(s *scene) { s.disturbNode(s.once("n1", "nft flush ruleset")) })
		})
	}
}

// mtu lowers the underlay's MTU and raises it again. Big answers must arrive.
func (s *scene) mtu() {
	set := func(mtu string) {
		for _, n := range []string{"n1", "n2", "n3"} {
			s.sh("node/"+n, "ip link set eth0 mtu "+mtu)
			s.sh("outside", "ip link set "+n+" mtu "+mtu)
		}
	}
	device := func() string { // "" where there is none
		_, mtu, _ := strings.Cut(s.sh("node/n1", "ip -o link show pl-vxlan 2>/dev/null || true"), " mtu ")
		mtu, _, _ = strings.Cut(mtu, " ")
		return mtu
	}
	before := device()
	defer set("1500")
	bulk := s.targets("bulk", "pod far", "Service far")
	s.between(func() time.Time { set("1400"); return time.Now() }, s.limit(), bulk, nil, nil)
	if before != "" && device() != "1350" {
		s.Errorf("the overlay's device has MTU %s, want 1350", device())
	}
	s.between(func() time.Time { set("1500"); return time.Now() }, s.limit(), bulk, nil, nil)
	if device() != before {
		s.Errorf("the overlay's device has MTU %s, want %s", device(), before)
	}
}

// TestForeignDrop: another packet filter that drops what pods send is named, with
// its rule; ours goes on when it is gone.
func TestForeignDrop(t *testing.T) {
	// Without the fast path, which goes past the filter (PL-031): where all have it on, the
	// client has not.
	s := upWith(t, "direct", strings.Replace(objects, "{name: client}", `{name: client, annotations: {podlane.dev/fast-path: "off"}}`, 1))
	s.sh("node/n1", "nft 'add table inet other; add chain inet other foreign { type filter hook forward priority 0; policy drop; }'")
	took := s.eventually(5*time.Second, func() error {
		out, err := s.podlane("lab", "doctor", "--name", s.name)
		if err == nil || !strings.Contains(out, "PL-010") || !strings.Contains(out, "inet other") {
			return fmt.Errorf("not named: %w: %s", err, out)
		}
		return nil
	})
	s.Logf("named after %s", took)
	w := s.watch("client", s.targets("tcp", "pod far"))
	time.Sleep(time.Second)
	for target, r := range w.stop() {
		if len(r.Lost) != r.Sent {
			s.Errorf("%s: %d of %d lost: the filter does not drop, so that its name says nothing", target, len(r.Lost), r.Sent)
		}
	}
	s.sh("node/n1", "nft delete table inet other")
	s.undisturbed(func() time.Time { return time.Time{} })
}
