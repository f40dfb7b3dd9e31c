package main

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/agent"
	"github.com/podlane/podlane/cni/shim"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/kernel/nft"
)

func newDebug() *cobra.Command {
	cmd := &cobra.Command{Use: "debug", Short: "What somebody who helps from afar needs to see", Args: cobra.NoArgs}
	cmd.AddCommand(newDebugBundle(), newDebugLogLevel())
	return cmd
}

func newDebugLogLevel() *cobra.Command {
	var runDir string
	cmd := &cobra.Command{
		Use:     "log-level debug|info|warn|error",
		Short:   "Change what this node's agent logs, until it ends",
		Example: "  podlane debug log-level debug",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			name, err := json.Marshal(args[0])
			if err != nil {
				return err
			}
			reply, err := shim.Ask(filepath.Join(runDir, "agent.sock"), shim.Request{Verb: agent.VerbLogLevel, Config: name}, 5*time.Second)
			if err == nil && reply.Error != nil {
				err = reply.Error
			}
			return err
		},
	}
	cmd.Flags().StringVar(&runDir, "run-dir", "/run/podlane", "folder of the agent's socket")
	return cmd
}

func newDebugBundle() *cobra.Command {
	var b bundle
	var out string
	cmd := &cobra.Command{
		Use:   "bundle",
		Short: "Write what this node's network is to a .tar.gz, without secrets",
		Long: `Write to a .tar.gz what one needs to understand a node's network from afar: the agent's status, links, routes, neighbours, tables, the record of pods,
the kernel's counters and settings of the network, and the CNI folders. No tokens, keys, kubeconfigs, environments or contents of packets are
read. Names of pods and addresses are in it. What cannot be read is in it as an error.`,
		Example: "  podlane debug bundle -o node1.tar.gz\n  kubectl podlane debug bundle --node node1 -o node1.tar.gz\n  kubectl -n podlane exec daemonset/podlane-agent -- /podlane debug bundle -o - > node1.tar.gz",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "-" {
				return b.write(cmd.OutOrStdout())
			}
			f, err := os.OpenFile(out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if errors.Is(err, unix.EROFS) {
				return fmt.Errorf("%w: in the agent's pod only -o - can be written to", err)
			}
			if err != nil {
				return err
			}
			return errors.Join(b.write(f), f.Close())
		},
	}
	cmd.Flags().StringVarP(&out, "output", "o", bundleName, "the file, which must not exist; - for stdout")
	cmd.Flags().StringVar(&b.runDir, "run-dir", "/run/podlane", "folder of the agent's socket")
	cmd.Flags().StringVar(&b.stateDir, "state-dir", "/var/lib/podlane", "folder of the allocation record")
	cmd.Flags().StringSliceVar(&b.cniDirs, "cni-dirs", []string{"/etc/cni/net.d", "/opt/cni/bin", "/host/etc/cni/net.d", "/host/opt/cni/bin"}, "folders whose files are listed")
	return cmd
}

// bundleName is the file that a bundle is written to.
const bundleName = "podlane-bundle.tar.gz"

// bundle is what goes into one file.
type bundle struct {
	runDir, stateDir string
	cniDirs          []string
	tar              *tar.Writer
}

// kernelFiles are counters and settings of the network namespace.
var kernelFiles = []string{
	"/proc/version", "/proc/net/dev", "/proc/net/snmp", "/proc/net/snmp6", "/proc/net/netstat", "/proc/net/softnet_stat", "/proc/net/sockstat",
	"/proc/net/stat/nf_conntrack", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding", "/proc/sys/net/ipv4/conf/all/rp_filter",
	"/proc/sys/net/netfilter/nf_conntrack_count", "/proc/sys/net/netfilter/nf_conntrack_max", "/proc/sys/net/ipv4/neigh/default/gc_thresh3",
}

func (b *bundle) write(w io.Writer) error {
	zip := gzip.NewWriter(w)
	b.tar = tar.NewWriter(zip)
	parts := []struct {
		name string
		read func() (string, error)
	}{
		{"version.txt", func() (string, error) { return version + "\n", nil }},
		{"status.json", b.status},
		{"links.txt", links},
		{"tables.txt", tables},
		{"cni.txt", func() (string, error) { return list(b.cniDirs) }},
	}
	var errs []error
	for _, p := range parts {
		text, err := p.read()
		errs = append(errs, b.add(p.name, text, err))
	}
	for _, path := range kernelFiles {
		text, err := os.ReadFile(path)
		errs = append(errs, b.add("kernel/"+strings.ReplaceAll(path[1:], "/", "_"), string(text), err))
	}
	records, err := filepath.Glob(filepath.Join(b.stateDir, "allocations", "v1", "*.json"))
	errs = append(errs, err)
	for _, path := range records {
		text, err := os.ReadFile(path)
		errs = append(errs, b.add("allocations/"+filepath.Base(path), string(text), err))
	}
	return errors.Join(append(errs, b.tar.Close(), zip.Close())...)
}

// add adds one file; that its contents could not be read is what it says then.
func (b *bundle) add(name, text string, err error) error {
	if err != nil {
		text += "error: " + err.Error() + "\n"
	}
	h := &tar.Header{Name: "podlane/" + name, Mode: 0o600, Size: int64(len(text)), ModTime: time.Now(), Typeflag: tar.TypeReg}
	if err := b.tar.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.WriteString(b.tar, text)
	return err
}

func (b *bundle) status() (string, error) {
	s, err := askStatus(filepath.Join(b.runDir, "agent.sock"))
	if err != nil {
		return "", err
	}
	text, err := json.MarshalIndent(s, "", "  ")
	return string(text) + "\n", err
}

func links() (string, error) {
	h, err := link.Open("")
	if err != nil {
		return "", err
	}
	defer h.Close()
	have, err := h.Read()
	return have.String(), err
}

// tables gives our tables' chains and rules by their comments and expressions.
func tables() (string, error) {
	c, err := nft.Dial(0)
	if err != nil {
		return "", err
	}
	defer c.Close()
	all, err := c.Tables()
	if err != nil {
		return "", err
	}
	var out strings.Builder
	for _, t := range all {
		fmt.Fprintf(&out, "table %s\n", t)
		rules, err := c.Rules(t)
		for _, r := range rules {
			fmt.Fprintf(&out, "  %s: %s %q\n", r.Chain, strings.Join(r.Exprs, " "), r.Comment)
		}
		if err != nil {
			fmt.Fprintf(&out, "  error: %v\n", err)
		}
	}
	return out.String(), nil
}

func list(dirs []string) (string, error) {
	var out strings.Builder
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		for _, e := range entries {
			fmt.Fprintf(&out, "%s %s\n", e.Type(), filepath.Join(dir, e.Name()))
		}
		if err != nil {
			fmt.Fprintf(&out, "%s: %v\n", dir, err)
		}
	}
	return out.String(), nil
}
