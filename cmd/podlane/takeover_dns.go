package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/podlane/podlane/cluster/kube"
	"github.com/podlane/podlane/dns/corefile"
	"github.com/podlane/podlane/takeover/kubedns"
)

type takeoverDNSFlags struct {
	kubeconfig, service, daemonSet, configMap string
	ips                                       string
	yes, undo, createOnly, json               bool
	wait                                      time.Duration
}

func newTakeoverDNS() *cobra.Command {
	var f takeoverDNSFlags
	cmd := &cobra.Command{
		Use:   "dns",
		Short: "Lead the cluster's DNS Service to podlane dns",
		Long: `Lead the Service of the cluster's DNS to Podlane's servers, whose DaemonSet must be there. Without --yes it prints what it would do and changes nothing.

Where there is no such Service it makes one, at --dns-ip or the tenth address of the Service range, that goes with the DaemonSet. Where the Service leads to
another server:

  1. CoreDNS's settings (--configmap) are copied for podlane dns, whose pods start anew with them. What cannot be taken over is named.
  2. Podlane's servers become ready, all of them.
  3. The Service is switched to them. Its address stays.

--undo switches it back, once the other server is ready; so leave that running until you are content. It needs a kubeconfig of one who may change Services,
ConfigMaps and DaemonSets of the namespace.`,
		Example: `  podlane takeover dns --kubeconfig ~/.kube/config
  podlane takeover dns --kubeconfig ~/.kube/config --yes
  podlane takeover dns --kubeconfig ~/.kube/config --yes --undo`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	fl := cmd.Flags()
	fl.BoolVar(&f.yes, "yes", false, "do it; without, only print the steps")
	fl.BoolVar(&f.undo, "undo", false, "switch the Service back to the server that it led to")
	fl.BoolVar(&f.json, "json", false, "print one JSON document instead of the steps")
	fl.BoolVar(&f.createOnly, "create-only", false, "change no Service that is there")
	fl.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig of the cluster; without: the service account of this pod")
	fl.StringVar(&f.service, "service", "kube-system/kube-dns", "the Service of the cluster's DNS: namespace/name")
	fl.StringVar(&f.daemonSet, "daemonset", "kube-system/podlane-dns", "the DaemonSet of podlane dns: namespace/name")
	fl.StringVar(&f.configMap, "configmap", "kube-system/coredns", "CoreDNS's ConfigMap, whose settings are taken over; \"\": none are")
	fl.StringVar(&f.ips, "dns-ip", "", "addresses of a Service that is made, ADDR[,ADDR] (default the tenth of each Service range)")
	fl.DurationVar(&f.wait, "wait", 5*time.Minute, "how long servers may take to become ready")
	cmd.MarkFlagsMutuallyExclusive("undo", "create-only")
	return cmd
}

func (f takeoverDNSFlags) options() (kubedns.Options, error) {
	var o kubedns.Options
	for _, n := range []struct {
		flag, text string
		to         *kubedns.Name
	}{{"service", f.service, &o.Service}, {"daemonset", f.daemonSet, &o.DaemonSet}, {"configmap", f.configMap, &o.Settings}} {
		k, err := parseService(n.text)
		if err != nil || n.text == "" && n.flag != "configmap" {
			return o, fmt.Errorf("--%s %q: want NAMESPACE/NAME", n.flag, n.text)
		}
		*n.to = kubedns.Name{Namespace: k.Namespace, Name: k.Name}
	}
	if f.createOnly {
		o.Settings = kubedns.Name{}
	}
	for _, text := range strings.FieldsFunc(f.ips, func(r rune) bool { return r == ',' || r == ' ' }) {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return o, fmt.Errorf("--dns-ip %q: want ADDR or ADDR,ADDR", f.ips)
		}
		o.IPs = append(o.IPs, ip)
	}
	return o, nil
}

// What `takeover dns` does to the Service.
const (
	dnsMake    = "make"
	dnsOver    = "over"
	dnsBack    = "back"
	dnsNothing = "none"
)

// takeoverDNSReport is what `takeover dns --json` prints, also where it failed.
type takeoverDNSReport struct {
	Found  kubedns.Found `json:"found"` // before
	Action string        `json:"action"`
	Done   bool          `json:"done"`  // false: nothing to do, only printed (without --yes), or failed
	Steps  []string      `json:"steps"` // in words
	// NotTakenOver are lines of the other server's settings that podlane dns has nothing for.
	NotTakenOver []string `json:"not_taken_over,omitempty"`
	Error        string   `json:"error,omitempty"`
}

func (f takeoverDNSFlags) run(cmd *cobra.Command) error {
	o, err := f.options()
	if err != nil {
		return err
	}
	api, err := kube.NewAPI(f.kubeconfig)
	if err != nil {
		return err
	}
	s, err := kubedns.Read(cmd.Context(), api, o)
	if err != nil {
		return fmt.Errorf("takeover: %w", err)
	}
	out := cmd.OutOrStdout()
	if f.json {
		err = f.document(cmd.Context(), out, s)
	} else {
		fmt.Fprintln(out, "found:", s)
		err = f.step(cmd.Context(), out, s)
	}
	if err != nil {
		return fmt.Errorf("takeover: %w", err)
	}
	return nil
}

func (f takeoverDNSFlags) document(ctx context.Context, out io.Writer, s *kubedns.State) error {
	report := takeoverDNSReport{Found: s.Found(), Action: f.action(s)}
	if c, err := corefile.Translate(s.Corefile()); err == nil && report.Action == dnsOver {
		for _, p := range c.Problems {
			report.NotTakenOver = append(report.NotTakenOver, p.String())
		}
	}
	var words bytes.Buffer
	err := f.step(ctx, &words, s)
	report.Steps = strings.FieldsFunc(words.String(), func(r rune) bool { return r == '\n' })
	report.Done = f.yes && err == nil && report.Action != dnsNothing
	if err != nil {
		report.Error = err.Error()
	}
	return errors.Join(err, printJSON(out, report))
}

// action is what is to be done, which a Service or a flag may yet forbid.
func (f takeoverDNSFlags) action(s *kubedns.State) string {
	switch {
	case f.undo:
		return dnsBack
	case s.Missing():
		return dnsMake
	case s.Ours() || f.createOnly:
		return dnsNothing
	}
	return dnsOver
}

func (f takeoverDNSFlags) step(ctx context.Context, out io.Writer, s *kubedns.State) error {
	ctx, cancel := context.WithTimeoutCause(ctx, f.wait, fmt.Errorf("not so within %s (--wait)", f.wait))
	defer cancel()
	switch f.action(s) {
	case dnsBack:
		return f.back(ctx, out, s)
	case dnsMake:
		if f.yes {
			return s.Make(ctx, out)
		}
		return f.printed(out, s.PrintMissing(ctx, out))
	case dnsNothing:
		return f.nothing(out, s)
	}
	if err := s.Check(); err != nil {
		return err
	}
	if err := printSettings(out, s); err != nil {
		return err
	}
	if f.yes {
		if err := s.Over(ctx, out); err != nil {
			return err
		}
		_, err := fmt.Fprintln(out, "the other server still runs; the way back is `podlane takeover dns --undo`")
		return err
	}
	s.PrintOver(out)
	return f.printed(out, nil)
}

func (f takeoverDNSFlags) back(ctx context.Context, out io.Writer, s *kubedns.State) error {
	switch {
	case s.Missing():
		return errors.New("there is no Service to switch back")
	case f.yes:
		return s.Back(ctx, out)
	}
	return f.printed(out, s.PrintBack(out))
}

func (f takeoverDNSFlags) nothing(out io.Writer, s *kubedns.State) error {
	if s.Ours() {
		_, err := fmt.Fprintln(out, "nothing to do")
		return err
	}
	if err := s.Check(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(out, "nothing was changed: `podlane takeover dns` shows how the Service comes to lead to podlane dns, and with --yes does it")
	return err
}

func (f takeoverDNSFlags) printed(out io.Writer, err error) error {
	if err == nil {
		_, err = fmt.Fprintln(out, "nothing was changed; --yes does it")
	}
	return err
}

// printSettings says what the other server's settings come to.
func printSettings(out io.Writer, s *kubedns.State) error {
	if s.Corefile() == "" {
		_, err := fmt.Fprintln(out, "1. (no Corefile was found: podlane dns keeps its own settings)")
		return err
	}
	c, err := corefile.Translate(s.Corefile())
	if err != nil {
		return fmt.Errorf("ConfigMap %s: %w", s.Settings, err)
	}
	fmt.Fprintf(out, "1. take over the settings of ConfigMap %s: podlane dns starts anew with\n", s.Settings)
	for _, v := range corefileFlags(c) {
		if s.Given(v.name) {
			continue
		}
		fmt.Fprintf(out, "     --%s=%s\n", v.name, v.value)
	}
	for line := range strings.Lines(c.Hosts) {
		fmt.Fprintf(out, "     hosts: %s\n", strings.TrimSpace(line))
	}
	for _, p := range c.Problems {
		fmt.Fprintf(out, "   not taken over: %s\n", p)
	}
	return nil
}
