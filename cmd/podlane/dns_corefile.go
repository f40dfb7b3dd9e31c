package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/podlane/podlane/dns"
	"github.com/podlane/podlane/dns/corefile"
)

func newDNSTranslate() *cobra.Command {
	return &cobra.Command{
		Use:   "translate FILE",
		Short: "Print what podlane dns makes of CoreDNS's configuration, and name each line it cannot do",
		Long: `Read a Corefile ("-" is stdin) and print the flags of podlane dns that come to the same. Lines that podlane dns cannot do, or does
otherwise, are named on stderr with the reason; there being any is no error. Entries of a hosts block have no flag but --corefile FILE.`,
		Example: `  kubectl -n kube-system get configmap coredns -o jsonpath='{.data.Corefile}' | podlane dns translate -`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := readCorefile(cmd.InOrStdin(), args[0])
			if err != nil {
				return err
			}
			for _, p := range s.Problems {
				fmt.Fprintln(cmd.ErrOrStderr(), p)
			}
			for _, f := range corefileFlags(s) {
				fmt.Fprintf(cmd.OutOrStdout(), "--%s=%s\n", f.name, f.value)
			}
			for line := range strings.Lines(s.Hosts) {
				fmt.Fprintf(cmd.OutOrStdout(), "# hosts: %s", line)
			}
			return nil
		},
	}
}

func readCorefile(stdin io.Reader, path string) (*corefile.Settings, error) {
	var text []byte
	var err error
	if path == "-" {
		text, err = io.ReadAll(stdin)
	} else {
		text, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, fmt.Errorf("corefile: %w", err)
	}
	return corefile.Translate(string(text))
}

type flagValue struct{ name, value string }

// corefileFlags gives the flags that a Corefile comes to.
func corefileFlags(s *corefile.Settings) []flagValue {
	var out []flagValue
	add := func(name, value string) {
		if value != "" {
			out = append(out, flagValue{name, value})
		}
	}
	add("cluster-domain", s.Domain)
	add("pods", s.Pods)
	add("endpoint-names", s.Endpoints)
	if s.TTL > 0 {
		add("ttl", fmt.Sprint(s.TTL))
	}
	switch {
	case s.NotForward:
		add("upstream", "none")
	case len(s.Upstreams) == 1 && strings.HasPrefix(s.Upstreams[0], "/"):
		add("resolv-conf", s.Upstreams[0])
	default:
		add("upstream", strings.Join(s.Upstreams, ","))
	}
	for _, st := range s.Stubs {
		add("stub", st.Zone+"="+strings.Join(st.Upstreams, ","))
	}
	add("hosts", s.HostsFile)
	add("serve-stale", s.ServeStale)
	add("health", s.Health)
	add("metrics", s.Metrics)
	add("lame-duck", s.LameDuck)
	if s.LogQueries {
		add("log-queries", "true")
	}
	return out
}

// corefilePath gives the file that --corefile is: of a folder the one called
// Corefile, "" where that is not there.
func corefilePath(path string) (string, error) {
	info, err := os.Stat(path)
	if path == "" || path == "-" || err != nil || !info.IsDir() {
		return path, nil // that it is not there is said by who reads it
	}
	path = filepath.Join(path, "Corefile")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("corefile: %w", err)
	}
	return path, nil
}

// takeCorefile sets the flags that were not given to what --corefile comes to.
func (f *dnsFlags) takeCorefile(cmd *cobra.Command) error {
	path, err := corefilePath(f.corefile)
	if err != nil || path == "" {
		return err
	}
	log, err := newLogger(cmd.ErrOrStderr(), f.logLevel, f.logFormat)
	if err != nil {
		return err
	}
	s, err := readCorefile(cmd.InOrStdin(), path)
	if err != nil {
		return err
	}
	for _, p := range s.Problems {
		log.Warn("dns: line of the Corefile not taken over", "line", p.Line, "text", p.Text, "err", p.Why)
	}
	f.hostsText = s.Hosts
	given := map[string]bool{}
	cmd.Flags().Visit(func(fl *pflag.Flag) { given[fl.Name] = fl.Value.String() != "" })
	for _, v := range corefileFlags(s) {
		if given[v.name] || given["upstream"] && v.name == "resolv-conf" {
			continue
		}
		if err := cmd.Flags().Set(v.name, v.value); err != nil {
			return fmt.Errorf("corefile: %w", err)
		}
	}
	return nil
}

// parseStubs reads --stub.
func parseStubs(texts []string) ([]dns.Stub, error) {
	var out []dns.Stub
	for _, text := range texts {
		zone, list, ok := strings.Cut(text, "=")
		name, err := dns.ParseName(zone)
		if !ok || err != nil || list == "" || name == dns.Root {
			return nil, fmt.Errorf("--stub %q: want ZONE=ADDR[,ADDR...]", text)
		}
		ups, err := parseUpstreams(strings.Split(list, ","))
		if err != nil {
			return nil, fmt.Errorf("--stub %q: %w", text, err)
		}
		out = append(out, dns.Stub{Zone: name, Upstreams: ups})
	}
	return out, nil
}

// hostsEntries reads --hosts and the entries of a Corefile; nil: there are none.
func (f *dnsFlags) hostsEntries() (*dns.Hosts, error) {
	text := f.hostsText
	if f.hosts != "" {
		b, err := os.ReadFile(f.hosts)
		if err != nil {
			return nil, fmt.Errorf("--hosts: %w", err)
		}
		text += string(b)
	}
	if text == "" {
		return nil, nil
	}
	h, err := dns.ParseHosts(text)
	if err != nil {
		return nil, fmt.Errorf("--hosts %s: %w", f.hosts, err)
	}
	return h, nil
}
