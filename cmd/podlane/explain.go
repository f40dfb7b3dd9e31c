package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/podlane/podlane/agent"
	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cni/shim"
	"github.com/podlane/podlane/explain"
	"github.com/podlane/podlane/explain/live"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/lab"
	"github.com/podlane/podlane/lab/control"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/plan"
)

// explainFlags are those of explain. Three sources: manifests, a lab, or the
// agent of this node.
type explainFlags struct {
	planFlags
	lab, runDir, output, protocol, enter string
	v6, verify, all                      bool
}

func newExplain() *cobra.Command {
	f := explainFlags{}
	cmd := &cobra.Command{
		Use:   "explain FROM TO",
		Short: "Say where a packet goes, hop by hop, and which kernel object sends it there",
		Long: `Say where the packets of one access go, hop by hop: which names the pod's resolver asks for and who answers, which Service rules they meet,
with what probability each endpoint is chosen or why it is not, whether the source address changes, which route, VTEP and underlay address they take, what
is the longest packet, and how the answer comes back; beside each step the kernel object behind it. It is computed from the same Plan that the
agents apply, and sends nothing. With --verify, in a lab, it also compares with what the kernels have, sends one real connection, proves its way by
conntrack, counters and nftrace, and names the first hop where reality differs.

FROM is a pod (curl, default/curl), node/NAME, an address, or "outside". TO is NAME:PORT, IP:PORT, svc/NAMESPACE/NAME:PORT, or a pod (NAMESPACE/NAME, with
or without :PORT). It asks the agent of this node, or with --lab the agents of a lab, or with -f nobody: then the manifests are the cluster.

The exit status is 0 also when the packet is refused or lost, 1 when --verify or --all finds a difference, 2 when the question cannot be answered.`,
		Example: `  podlane explain default/curl nginx-service:8000 -f examples/nginx.yaml
  podlane lab explain curl nginx-service:8000
  podlane lab explain node/n1 svc/default/nginx-service:8000 --verify
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
	fl.StringVar(&f.lab, "lab", "", "explain in the lab of this name")
	fl.StringVarP(&f.output, "output", "o", "text", "text, json, dot, mermaid, svg")
	fl.StringVar(&f.protocol, "protocol", "tcp", "tcp, udp, sctp")
	fl.BoolVarP(&f.v6, "ipv6", "6", false, "of several addresses take that of IPv6")
	fl.StringVar(&f.enter, "enter", "", "the node at which packets from outside come in")
	fl.StringVar(&f.node, "node", "", "with -f: check that the manifests have this node, and let packets from outside come in there")
	fl.BoolVar(&f.verify, "verify", false, "in a lab: compare with the kernels of the nodes on the way, and prove the way with one real connection")
	fl.BoolVar(&f.all, "all", false, "in a lab: compare everything that the nodes should have with what they have; exit status 1 when it differs")
	fl.StringVar(&f.runDir, "run-dir", "/run/podlane", "folder of the agent's socket")
	fl.StringVar(&f.mode, "overlay", string(overlay.Auto), "with -f: how packets reach other nodes' pods: auto, vxlan, direct")
	fl.StringVar(&f.cluster, "cluster", "podlane", "with -f: the cluster's name")
	fl.StringVar(&f.device, "device", "eth0", "with -f: the link that joins the nodes")
	fl.IntVar(&f.mtu, "mtu", 1500, "with -f: its MTU")
	fl.StringVar(&f.family, "ip-family", "dual", "with -f: ipv4, ipv6 or dual: of what the manifests leave open")
	return cmd
}

// newLabExplain is `podlane lab explain`: the same for a lab.
func newLabExplain() *cobra.Command {
	cmd := newExplain()
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		name, err := cmd.Flags().GetString("name")
		if err != nil {
			return err
		}
		return cmd.Flags().Set("lab", name)
	}
	cmd.Short += ", in a lab"
	_ = cmd.Flags().MarkHidden("lab")
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
	if (f.verify || f.all) && f.lab == "" {
		return &exitError{2, errors.New("--verify and --all need --lab NAME, or podlane lab explain")}
	}
	if f.all {
		return asTwo(compareAll(cmd, f))
	}
	access := explain.Access{From: args[0], To: args[1], Protocol: proto, IPv6: f.v6, Enter: f.enter}
	if f.verify {
		return asTwo(verifyInLab(cmd, f, access))
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
	switch {
	case len(f.files) > 0:
		w, err := f.manifestWorld(cmd)
		if err != nil {
			return nil, err
		}
		if a.Enter == "" {
			a.Enter = f.node
		}
		return explain.Explain(*w, a)
	case f.lab != "":
		c, err := live.Read(cmd.Context(), f.lab)
		if err != nil {
			return nil, err
		}
		if err := c.Ask(); err != nil {
			return nil, err
		}
		return explain.Explain(c.World(), a)
	}
	return askExplain(filepath.Join(f.runDir, "agent.sock"), a)
}

// askExplain asks the agent of this node.
func askExplain(socket string, a explain.Access) (*explain.Answer, error) {
	question, err := json.Marshal(a)
	if err != nil {
		return nil, err
	}
	reply, err := shim.Ask(socket, shim.Request{Verb: agent.VerbExplain, Config: question}, 5*time.Second)
	if err != nil {
		return nil, fmt.Errorf("no agent answers on %s (is `podlane agent` running on this node, and may you read its socket? -f and --lab ask no agent of this node): %w", socket, err)
	}
	if reply.Error != nil {
		return nil, reply.Error
	}
	answer := &explain.Answer{}
	return answer, json.Unmarshal(reply.Result, answer)
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
	o, err := overlayConfig(f.mode, f.cluster)
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
	return plan.CompileAll(plan.Input{
		Node: node, Overlay: o, Snapshot: s, Pods: podsOn(s, node),
		Underlay: link.Underlay{Device: f.device, MTU: f.mtu, Addrs: addrs},
	})
}
