package rig

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/podlane/podlane/lab"
	"github.com/podlane/podlane/perf"
)

// flannelScript makes one node's part of flannel's layout: a bridge, one pod at it by a veth pair, and the
// other node's pod network by way of the node (host-gw) or through a VXLAN device with permanent
// neighbour and FDB entries, as flanneld makes them. Then it runs the pod's command.
const flannelScript = `set -e
how=$1 me=$2 peer=$3 there=$4; shift 4
unshare -n sleep 86400 & pod=$!
until [ "$(readlink /proc/$pod/ns/net)" != "$(readlink /proc/self/ns/net)" ] && [ "$(cat /proc/$pod/comm)" = sleep ]; do sleep 0.01; done
mtu=1500; [ $how = host-gw ] || mtu=1450
ip link add cni0 mtu $mtu type bridge
ip addr add 10.9.$me.1/24 dev cni0
ip link set cni0 up
ip link add pod0 mtu $mtu type veth peer name eth0 mtu $mtu netns $pod
ip link set pod0 master cni0 up
nsenter -t $pod -n sh -ec "ip link set lo up; ip addr add 10.9.$me.2/24 dev eth0; ip link set eth0 up; ip route add default via 10.9.$me.1"
if [ $how = host-gw ]; then
	ip route add 10.9.$peer.0/24 via $there
else
	ip link add flannel.1 mtu $mtu address 02:f1:00:00:00:0$me type vxlan id 9 dstport 8475 dev eth0 nolearning
	ip addr add 10.9.$me.0/32 dev flannel.1
	ip link set flannel.1 up
	ip route add 10.9.$peer.0/24 via 10.9.$peer.0 dev flannel.1 onlink
	ip neigh replace 10.9.$peer.0 lladdr 02:f1:00:00:00:0$peer dev flannel.1 nud permanent
	bridge fdb append 02:f1:00:00:00:0$peer dev flannel.1 dst $there
fi
echo $pod
exec nsenter -t $pod -n "$@"
`

// flannel builds the layout in both nodes of a lab, with a server in the far pod.
func (r *rig) flannel(ctx context.Context, b *bench) (perf.Path, error) {
	address := map[string]string{}
	for _, n := range b.status.Nodes {
		if len(n.Addresses) > 0 {
			address[n.Name] = n.Addresses[0]
		}
	}
	if a, err := netip.ParseAddr(address[near]); err != nil || !a.Is4() {
		return perf.Path{}, fmt.Errorf("overlay %s: IPv4 only", b.layout.name)
	}
	client, err := r.half(ctx, b, near, "1", "2", address[far], "sleep", "86400")
	if err != nil {
		return perf.Path{}, err
	}
	if _, err := r.half(ctx, b, far, "2", "1", address[near], r.self, "perf", "server", "--lp", "4000"); err != nil {
		return perf.Path{}, err
	}
	server := netip.AddrFrom4([4]byte{10, 9, 2, 2})
	return perf.Path{
		Name: perf.PodPod, Address: server.String(), Proof: &perf.Proof{Servers: []netip.Addr{server}},
		Exec: func(ctx context.Context, argv []string) ([]byte, error) {
			out, err := b.client.Output(ctx, "node/"+near, append([]string{"nsenter", "-t", client, "-n"}, argv...)...)
			return []byte(out), err
		},
	}, nil
}

// half runs the script on one node until the rig goes down, and gives the pod's
// process as the lab's nodes see it.
func (r *rig) half(ctx context.Context, b *bench, node, me, peer, there string, command ...string) (pid string, err error) {
	out, outW, err := os.Pipe()
	if err != nil {
		return "", err
	}
	errs, err := os.CreateTemp("", "podlane-flannel-")
	if err != nil {
		return "", err
	}
	_ = os.Remove(errs.Name())
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		argv := append([]string{"sh", "-c", flannelScript, "sh", b.layout.flannel, me, peer, there}, command...)
		_, _ = b.client.Exec(running, "node/"+node, argv, lab.Stdio{Out: outW, Err: errs})
		_ = outW.Close()
	}()
	r.stops = append(r.stops, func() { stop(); <-ended; _ = errs.Close() })
	_ = out.SetReadDeadline(time.Now().Add(20 * time.Second))
	line, err := bufio.NewReader(out).ReadString('\n')
	if pid = strings.TrimSpace(line); err == nil && pid != "" {
		return pid, nil
	}
	said := make([]byte, 1000)
	n, _ := errs.ReadAt(said, 0)
	return "", errors.Join(fmt.Errorf("overlay %s on %s: %s", b.layout.name, node, said[:n]), err)
}
