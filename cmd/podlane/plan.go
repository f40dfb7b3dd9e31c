package main

import (
	"fmt"
	"hash/fnv"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/lab"
	"github.com/podlane/podlane/lab/control"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/plan"
	"github.com/podlane/podlane/proxy/nftables"
)

type planFlags struct {
	files                    []string
	node, device, family, ll string
	mtu                      int
	overlayFlags
}

func newPlan() *cobra.Command {
	var f planFlags
	cmd := &cobra.Command{
		Use:   "plan -f FILE --node NODE",
		Short: "Print the kernel state that a node should have, with no cluster and no privileges",
		Long: `Print what a node's agent would write into its kernel for the cluster of the manifests: links, addresses, routes, neighbours, FDB entries,
sysctls and nftables tables. Nothing is written, and nothing of this machine is read.

Where the manifests have no Node there are two, n1 and n2; the pods of Deployments and ReplicationControllers are placed, and all pods are Ready, at the
first addresses of their nodes' pod CIDRs, as in a lab. What cannot be used is named on standard error, and the exit status is then 1.`,
		Example: `  podlane plan -f examples/nginx.yaml --node n1
  podlane plan -f manifests/ --node n2 --overlay vxlan | less`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runPlan(cmd, f) },
	}
	fl := cmd.Flags()
	filesFlag(cmd, &f.files)
	fl.StringVar(&f.node, "node", "", "the node")
	f.overlayFlags.add(fl, "")
	fl.StringVar(&f.device, "device", "eth0", "the link that joins the nodes")
	fl.IntVar(&f.mtu, "mtu", 1500, "its MTU")
	fl.StringVar(&f.family, "ip-family", "dual", "ipv4, ipv6 or dual: of what the manifests leave open")
	fl.StringVar(&f.ll, "segment", "", "the L2 segment of the node's link, such as 192.168.200.0/24 (default: one with all nodes)")
	_ = cmd.MarkFlagRequired("file")
	_ = cmd.MarkFlagRequired("node")
	return cmd
}

func runPlan(cmd *cobra.Command, f planFlags) error {
	objects, unread, err := readManifests(cmd, f.files)
	if err != nil {
		return err
	}
	config, err := control.Default(f.family)
	if err != nil {
		return err
	}
	o, err := f.overlayFlags.config()
	if err != nil {
		return err
	}
	simulated, problems := config.Simulate(objects)
	snapshot := simulated.Snapshot("")
	own := snapshot.Nodes.Get(cluster.Key{Name: f.node})
	if own == nil {
		return fmt.Errorf("--node %s: the manifests have no such node: %s", f.node, nodeList(snapshot))
	}
	segments, err := segments(f.ll, own, snapshot)
	if err != nil {
		return err
	}
	p := plan.CompileAll(plan.Input{
		Node: f.node, Overlay: o, Snapshot: snapshot, Pods: podsOn(snapshot, f.node),
		Underlay: link.Underlay{Device: f.device, MTU: f.mtu, Addrs: segments},
	})
	conflicts, err := printPlan(cmd.OutOrStdout(), p)
	if err != nil {
		return err
	}
	problems = append(append(append(problems, snapshot.Problems()...), p.Problems...), conflicts...)
	for _, line := range distinctLines(problems) {
		unread = lab.JoinLines(unread, &lineError{line})
	}
	return unread
}

func nodeList(s *cluster.Snapshot) string {
	var names []string
	for _, k := range s.Nodes.Keys() {
		names = append(names, k.Name)
	}
	return strings.Join(names, ", ")
}

func distinctLines(ps []cluster.Problem) []string {
	var lines []string
	for _, p := range ps {
		lines = append(lines, p.String())
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}

// segments gives the node's addresses with the prefix of their L2 segment: the
// one given, or the longest that has all nodes of the family.
func segments(given string, own *cluster.Node, s *cluster.Snapshot) ([]netip.Prefix, error) {
	var list []netip.Prefix
	for _, a := range own.Addresses {
		if given == "" {
			list = append(list, netip.PrefixFrom(a, commonBits(a, s)))
			continue
		}
		p, err := netip.ParsePrefix(given)
		if err != nil {
			return nil, fmt.Errorf("--segment %q: %w", given, err)
		}
		if p.Contains(a) {
			list = append(list, netip.PrefixFrom(a, p.Bits()))
		} else {
			list = append(list, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return list, nil
}

func commonBits(a netip.Addr, s *cluster.Snapshot) int {
	bits := a.BitLen()
	for _, n := range s.Nodes.All() {
		for _, b := range n.Addresses {
			for b.Is6() == a.Is6() && !netip.PrefixFrom(a, bits).Contains(b) {
				bits--
			}
		}
	}
	return bits
}

// podsOn simulates the allocation record of a node: one link for each pod.
func podsOn(s *cluster.Snapshot, node string) []overlay.Pod {
	var pods []overlay.Pod
	for _, k := range s.Pods.Keys() {
		p := s.Pods.Get(k)
		if p.Node != node || p.HostNetwork || p.Done || len(p.IPs) == 0 {
			continue
		}
		h := fnv.New64a()
		_, _ = io.WriteString(h, k.String())
		sum := h.Sum(nil)
		pods = append(pods, overlay.Pod{Link: fmt.Sprintf("%s%x", link.Prefix, sum[:6]), MAC: link.MAC{0x02, sum[0], sum[1], sum[2], sum[3], sum[4]}, Addrs: p.IPs})
	}
	return pods
}

// printPlan prints the state as the commands that would make it, and gives the
// conflicts of Services that only the rendering finds.
func printPlan(w io.Writer, p *plan.Plan) ([]cluster.Problem, error) {
	fmt.Fprintf(w, "# node %s: links, addresses, neighbours, FDB entries, routes, sysctls\n%s", p.Node, p.Link)
	for _, r := range p.Guard {
		fmt.Fprintf(w, "\n# node %s: nft, family %s: whose packets are taken\n%s", p.Node, r.Family, r.Tx())
	}
	var conflicts []cluster.Problem
	for _, f := range []nft.Family{nft.IPv4, nft.IPv6} {
		fmt.Fprintf(w, "\n# node %s: nft, family %s\n", p.Node, f)
		applied, err := nftables.Load(nftables.NewRuleset(f, nftables.Names[0]), p.Table, p.PodAddrs, nil, func(tx *nft.Tx) error {
			_, err := fmt.Fprint(w, tx)
			return err
		})
		if err != nil {
			return nil, err
		}
		conflicts = append(conflicts, applied.Problems()...)
	}
	return conflicts, nil
}
