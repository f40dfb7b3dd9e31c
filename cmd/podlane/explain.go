package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/podlane/podlane/agent"
	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/explain"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/lab"
	"github.com/podlane/podlane/lab/control"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/plan"
)

// explainFlags are those of explain. The cluster is that of manifests, or where
// whereFlags say.
type explainFlags struct {
	planFlags
	whereFlags
	output, protocol, enter string
	v6, verify, all         bool
}

func newExplain() *cobra.Command {
	f := explainFlags{}
	cmd := &cobra.Command{
		Use:   "explain FROM TO",
		Short: "Say where a packet goes, hop by hop, and which kernel object sends it there",
		Long: `Say where the packets of one access go, hop by hop: which names the pod's resolver asks for and who answers, which Service rules they meet,
with what probability each endpoint is chosen or why it is not, whether the source address changes, which route, VTEP and underlay address they take, what
is the longest packet, and how the answer comes back; beside each step the kernel object behind it. It is computed from the same Plan that the
agents apply, and sends nothing. With --verify it also compares with what the kernels of the nodes have, sends one real connection, proves its way by
conntrack, counters and nftrace, and names the first hop where reality differs.

FROM is a pod (curl, default/curl), node/NAME, an address, or "outside". TO is NAME:PORT, IP:PORT, svc/NAMESPACE/NAME:PORT, or a pod (NAMESPACE/NAME, with
or without :PORT).

On a node it asks that node's agent. With --kubeconfig it asks, from wherever, the API server and through it the agents of the nodes on the way, with
your own rights (docs/doctor.md says which); "outside" is then this machine. With --lab it asks the agents of a lab, and with -f nobody: then the
manifests are the cluster. --verify from a pod of a cluster runs the probe in an ephemeral container of that pod, which stays in its description.

The exit status is 0 also when the packet is refused or lost, 1 when --verify or --all finds a difference, 2 when the question cannot be answered.`,
		Example: `  podlane explain default/curl nginx-service:8000 -f examples/nginx.yaml
  podlane lab explain curl nginx-service:8000
  podlane lab explain node/n1 svc/default/nginx-service:8000 --verify
  podlane explain default/curl nginx-service:8000 --verify --kubeconfig ~/.kube/config
  podlane lab explain --all
  podlane explain curl 10.96.0.10:53 --protocol udp -o json`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 && !(f.all && len(args) == 0) {
				return &exitError{2, errors.New("explain: want FROM and TO, such as: podlane explain default/curl nginx-service:8000")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runExplain(cmd, f, args) },
	}
	cmd.AddCommand(newExplainConn())
	fl := cmd.Flags()
	filesFlag(cmd, &f.files)
	f.whereFlags.add(cmd)
	fl.StringVarP(&f.output, "output", "o", "text", "text, json, dot, mermaid, svg")
	fl.StringVar(&f.protocol, "protocol", "tcp", "tcp, udp, sctp")
	fl.BoolVarP(&f.v6, "ipv6", "6", false, "of several addresses take that of IPv6")
	fl.StringVar(&f.enter, "enter", "", "the node at which packets from outside come in")
	fl.StringVar(&f.node, "node", "", "with -f: check that the manifests have this node, and let packets from outside come in there")
	fl.BoolVar(&f.verify, "verify", false, "compare with the kernels of the nodes on the way, and prove the way with one real connection")
	fl.BoolVar(&f.all, "all", false, "compare everything that this node should have, or all nodes of --kubeconfig or a lab, with what they have; exit status 1 when it differs")
	f.overlayFlags.add(fl, "with -f: ")
	fl.StringVar(&f.device, "device", "eth0", "with -f: the link that joins the nodes")
	fl.IntVar(&f.mtu, "mtu", 1500, "with -f: its MTU")
	fl.StringVar(&f.family, "ip-family", "dual", "with -f: ipv4, ipv6 or dual: of what the manifests leave open")
	return cmd
}

// newLabExplain is `podlane lab explain`: the same for a lab.
func newLabExplain() *cobra.Command {
	cmd := newExplain()
	inLab(cmd)
	cmd.Short += ", in a lab"
	return cmd
}

var protocols = map[string]cluster.Protocol{"tcp": cluster.TCP, "udp": cluster.UDP, "sctp": cluster.SCTP}

func runExplain(cmd *cobra.Command, f explainFlags, args []string) error {
	proto, ok := protocols[strings.ToLower(f.protocol)]
	if !ok {
		return &exitError{2, fmt.Errorf("--protocol %q: want tcp, udp or sctp", f.protocol)}
	}
	write, ok := explainOutputs[f.output]
	if !ok {
		return &exitError{2, fmt.Errorf("-o %q: want text, json, dot, mermaid or svg", f.output)}
	}
	if (f.verify || f.all) && len(f.files) > 0 {
		return &exitError{2, errors.New("--verify and --all compare with kernels, and -f has none")}
	}
	if f.all {
		return asTwo(compareAll(cmd, f))
	}
	access := explain.Access{From: args[0], To: args[1], Protocol: proto, IPv6: f.v6, Enter: f.enter}
	if f.verify {
		return asTwo(verify(cmd, f, access))
	}
	answer, err := f.answer(cmd, access)
	if err != nil {
		return asTwo(err)
	}
	return write(answer, cmd.OutOrStdout())
}

// asTwo gives errors that have no exit status of their own that of a question
// without an answer.
func asTwo(err error) error {
	var exit *exitError
	if err == nil || errors.As(err, &exit) {
		return err
	}
	return &exitError{2, err}
}

var explainOutputs = map[string]func(*explain.Answer, io.Writer) error{
	"text":    (*explain.Answer).Text,
	"json":    func(a *explain.Answer, w io.Writer) error { return printJSON(w, a) },
	"dot":     (*explain.Answer).DOT,
	"mermaid": (*explain.Answer).Mermaid,
	"svg":     (*explain.Answer).SVG,
}

func (f *explainFlags) answer(cmd *cobra.Command, a explain.Access) (*explain.Answer, error) {
	if len(f.files) > 0 {
		w, err := f.manifestWorld(cmd)
		if err != nil {
			return nil, err
		}
		if a.Enter == "" {
			a.Enter = f.node
		}
		return explain.Explain(*w, a)
	}
	c, err := f.reach(cmd.Context(), false)
	if err != nil {
		return nil, err
	}
	if c != nil {
		return c.Explain(cmd.Context(), a)
	}
	answer := &explain.Answer{}
	return answer, f.ask(agent.VerbExplain, a, answer)
}

// manifestWorld makes a world of manifests, as `podlane plan` does.
func (f *explainFlags) manifestWorld(cmd *cobra.Command) (*explain.World, error) {
	objects, unread, err := readManifests(cmd, f.files)
	if err != nil || unread != nil {
		return nil, errors.Join(err, unread)
	}
	config, err := control.Default(f.family)
	if err != nil {
		return nil, err
	}
	o, err := f.overlayFlags.config()
	if err != nil {
		return nil, err
	}
	simulated, _ := config.Simulate(lab.WithSystem(config, objects))
	s := simulated.Snapshot("")
	if f.node != "" && s.Nodes.Get(cluster.Key{Name: f.node}) == nil {
		return nil, fmt.Errorf("--node %s: the manifests have no such node: %s", f.node, nodeList(s))
	}
	return &explain.World{Snapshot: s, Compile: func(node string) *plan.Plan { return f.compile(s, o, node) }}, nil
}

func (f *explainFlags) compile(s *cluster.Snapshot, o overlay.Config, node string) *plan.Plan {
	own := s.Nodes.Get(cluster.Key{Name: node})
	if own == nil {
		return nil
	}
	addrs, err := segments("", own, s)
	if err != nil {
		return nil
	}
	return plan.CompileLinks(plan.Input{
		Node: node, Overlay: o, Snapshot: s, Pods: podsOn(s, node),
		Underlay: link.Underlay{Device: f.device, MTU: f.mtu, Addrs: addrs},
	})
}
