package oracle

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/convert"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/proxy"
	"github.com/podlane/podlane/proxy/nftables/apply"
	"github.com/podlane/podlane/test/oracle/history"
	"github.com/podlane/podlane/test/oracle/world"
)

// podlane is Podlane's service proxy in a node: from the API's objects to the
// kernel, by the parts that the agent has.
type podlane struct {
	*world.World
	config   proxy.Config
	builder  *cluster.Builder
	snapshot *cluster.Snapshot
	table    *proxy.Table
	conn     *nft.Conn
	applier  *apply.Applier
	sockets  *sockets // nil: the rules translate all
	pods     []netip.Addr
	state    *history.State
}

func newPodlane(w *world.World, nodePortAddresses []string) (*podlane, error) {
	p := &podlane{World: w, config: proxy.Config{Node: history.Node}, state: history.NewState()}
	for _, a := range nodePortAddresses {
		p.config.NodePortAddresses = append(p.config.NodePortAddresses, netip.MustParsePrefix(a))
	}
	for _, v6 := range []bool{false, true} {
		p.pods = append(append(p.pods, history.EndpointPods(v6)...), history.ClientPods(v6)...)
	}
	if SocketLB {
		var err error
		if p.sockets, err = newSockets(); err != nil {
			return p, fmt.Errorf("translation at the socket: %w", err)
		}
	}
	return p, p.start()
}

// start is a start of the agent, with whatever the kernel has.
func (p *podlane) start() error {
	p.close()
	err := p.Do(func() (err error) { p.conn, err = nft.Dial(0); return err })
	if err != nil {
		return err
	}
	if p.sockets != nil {
		if err := p.sockets.open(); err != nil {
			return err
		}
	}
	p.applier = apply.New(p.conn, nft.IPv4, nft.IPv6)
	p.builder, p.snapshot, p.table = cluster.NewBuilder(), &cluster.Snapshot{}, &proxy.Table{}
	for _, c := range p.state.Changes() {
		p.tell(c)
	}
	return p.sync()
}

func (p *podlane) close() {
	if p.conn != nil {
		_ = p.conn.Close()
	}
}

func (p *podlane) step(s history.Step) error {
	for _, c := range s {
		p.state.Apply(c)
		if !c.Restart {
			p.tell(c)
			continue
		}
		if err := p.start(); err != nil {
			return err
		}
	}
	return p.sync()
}

// sync compiles, and also from nothing: the two must agree.
func (p *podlane) sync() error {
	now := p.builder.Publish()
	p.table = proxy.Compile(p.table, p.snapshot, now, p.config)
	p.snapshot = now
	if whole := proxy.CompileAll(now, p.config); !sameTable(p.table, whole) {
		return errors.New("proxy.Compile and CompileAll do not agree")
	}
	if err := p.applier.Apply(p.table, p.pods); err != nil {
		return err
	}
	if p.sockets != nil {
		if err := p.sockets.apply(p.World, p.table); err != nil {
			return err
		}
	}
	return p.applier.Tidy()
}

// finish looks at what the kernel has at the end of a history: it is what it is
// believed to be, and nft can list it.
func (p *podlane) finish() error {
	if err := p.applier.Audit(p.table, p.pods); err != nil {
		return err
	}
	if p.applier.Doubtful() {
		return errors.New("the audit finds that the kernel has other rules than are believed")
	}
	if p.sockets != nil {
		if err := p.sockets.finish(); err != nil {
			return err
		}
	}
	return p.Do(func() error {
		if out, err := exec.Command("nft", "list", "ruleset").CombinedOutput(); err != nil {
			return fmt.Errorf("nft list ruleset: %w: %.500s", err, out)
		}
		return nil
	})
}

// shoot is World.Shoot of what leaves the pods' sockets.
func (p *podlane) shoot(shots []world.Shot) ([]world.Outcome, error) {
	if p.sockets == nil {
		return p.Shoot(shots)
	}
	aimed, err := p.sockets.aim(shots)
	if err != nil {
		return nil, err
	}
	return p.Shoot(aimed)
}

// sentTo gives where a connection of a known source port was sent, which is where its
// answers come from.
func (p *podlane) sentTo(s world.Shot) netip.AddrPort {
	if p.sockets != nil {
		if to, ok := p.sockets.sent[connection{s.Source, s.Port, s.To}]; ok {
			return to
		}
	}
	return s.To
}

func sameTable(a, b *proxy.Table) bool {
	if a.Services.Len() != b.Services.Len() || !reflect.DeepEqual(a.NodePorts, b.NodePorts) || !reflect.DeepEqual(a.ServiceCIDRs, b.ServiceCIDRs) {
		return false
	}
	for k, e := range a.Services.All() {
		if !reflect.DeepEqual(e, b.Services.Get(k)) {
			return false
		}
	}
	return true
}

func (p *podlane) tell(c history.Change) {
	of := func(name string) cluster.Key { return cluster.Key{Namespace: history.Namespace, Name: name} }
	switch {
	case c.Service != nil:
		p.builder.SetService(convert.Service(c.Service))
	case c.DeleteService != "":
		p.builder.DeleteService(of(c.DeleteService))
	case c.Slice != nil:
		if s := convert.EndpointSlice(c.Slice); s != nil {
			p.builder.SetSlice(s)
		}
	case c.DeleteSlice != "":
		p.builder.DeleteSlice(of(c.DeleteSlice))
	case c.Zone != "":
		p.builder.SetNode(convert.Node(node(p.state.Zone)))
	case len(c.ServiceCIDRs) > 0:
		p.builder.SetServiceCIDR(convert.ServiceCIDR(&networkingv1.ServiceCIDR{
			ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: p.state.ServiceCIDRs}}))
	}
}

func node(zone string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: history.Node}}
	if zone != "" {
		n.Labels = map[string]string{corev1.LabelTopologyZone: zone}
	}
	for _, a := range history.NodeAddrs {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	return n
}
