package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/file"
	"github.com/podlane/podlane/cluster/kube"
	"github.com/podlane/podlane/dns"
	"github.com/podlane/podlane/internal/memory"
)

// dnsSource is where the cluster is read from: a folder or an API server.
type dnsSource interface {
	Run(context.Context) error
	Snapshots() <-chan *cluster.Snapshot
}

type dnsFlags struct {
	manifests, kubeconfig   string
	listen, upstreams       []string
	domain, service, pods   string
	resolvConf              string
	ttl                     uint32
	cacheMiB                int
	health, metrics         string
	logQueries              bool
	logLevel, logFormat     string
	lameDuck, upstreamLimit time.Duration
	stubs                   []string
	endpointNames           string
	hosts, corefile, node   string
	serveStale              time.Duration
	hostsText               string // entries of a Corefile
}

// defaultDomain is the zone of nearly all clusters.
const defaultDomain = "cluster.local"

func newDNS() *cobra.Command {
	var f dnsFlags
	cmd := &cobra.Command{
		Use:   "dns",
		Short: "Run a node's DNS server: the cluster's names from the cluster's state, all others from other resolvers",
		Long: `Run a DNS server for the cluster's pods. It follows the cluster (a kube-apiserver, or a folder of YAML) and answers the cluster's zone by the
Kubernetes DNS specification 1.1.0; questions for other names go to the given resolvers, or to those of resolv.conf, and are cached.

Until the cluster has been read, the cluster's names are answered with SERVFAIL and /readyz says so. When the API server is away, the last state is
answered from. On SIGTERM it goes on for a moment, so that clients find another server, and ends within 2 s.

With --corefile the settings of a CoreDNS are taken over; flags that are given count more. "podlane dns translate" prints what they come to.
With --health and --node, "podlane dns queries" shows what a pod of the node asks.`,
		Example: `  podlane dns --kubeconfig /etc/podlane/kubeconfig --health :8080 --metrics :9153
  podlane dns --manifests ./cluster --listen 127.0.0.1:5300 --upstream 192.0.2.53,192.0.2.54
  dig @127.0.0.1 -p 5300 kubernetes.default.svc.cluster.local`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.takeCorefile(cmd); err != nil {
				return err
			}
			if f.domain == "" {
				f.domain = defaultDomain
			}
			return runDNS(cmd, f)
		},
	}
	cmd.AddCommand(newDNSTranslate(), newDNSQueries())
	fl := cmd.Flags()
	fl.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig of the API server; without it and --manifests: in-cluster")
	fl.StringVar(&f.manifests, "manifests", "", "follow a folder or file of Kubernetes YAML instead of an API server")
	fl.StringSliceVar(&f.listen, "listen", []string{":53"}, "addresses to answer at, UDP and TCP; without a host: all, IPv4 and IPv6")
	fl.StringVar(&f.domain, "cluster-domain", "", "the cluster's zone (default that of --corefile, else cluster.local)")
	fl.StringVar(&f.service, "service", "kube-system/kube-dns", "the Service of the cluster's DNS: its cluster IPs are those of ns.dns.<zone>")
	fl.StringVar(&f.pods, "pods", string(dns.PodsInsecure), "pod records (10-0-0-1.namespace.pod.<zone>): disabled, insecure, verified")
	fl.StringVar(&f.endpointNames, "endpoint-names", "headless", "Services whose endpoints have names and PTR records: headless (the specification), all (as in CoreDNS; needs all endpoint slices)")
	fl.Uint32Var(&f.ttl, "ttl", 30, "TTL of the cluster's records in seconds")
	fl.StringSliceVar(&f.upstreams, "upstream", nil, "resolvers for all other names, ADDR or ADDR:PORT, in this order; none: such names are refused (default those of --resolv-conf)")
	fl.StringVar(&f.resolvConf, "resolv-conf", "/etc/resolv.conf", "file that names the resolvers where --upstream does not")
	fl.DurationVar(&f.upstreamLimit, "upstream-timeout", 4500*time.Millisecond, "how long resolvers may take before a question is answered with SERVFAIL")
	fl.StringArrayVar(&f.stubs, "stub", nil, "a zone with resolvers of its own, ZONE=ADDR[,ADDR...]; may be given several times")
	fl.StringVar(&f.hosts, "hosts", "", "file of names with addresses (hosts(5)) to answer without asking resolvers")
	fl.DurationVar(&f.serveStale, "serve-stale", time.Hour, "how long answers may be given past their end while no resolver answers; 0: not at all")
	fl.StringVar(&f.corefile, "corefile", "", "CoreDNS's configuration to take settings from, or a folder that may have a file Corefile; lines that cannot be taken over are logged")
	fl.StringVar(&f.node, "node", "", "this node's name: its pods are followed, named in the query log and counted by namespace")
	fl.IntVar(&f.cacheMiB, "cache", 16, "memory for answers from resolvers in MiB")
	fl.StringVar(&f.health, "health", "", "address of /healthz and /readyz over HTTP (default none)")
	fl.StringVar(&f.metrics, "metrics", "", "address of /metrics over HTTP (default none)")
	fl.DurationVar(&f.lameDuck, "lame-duck", time.Second, "how long to go on answering after SIGTERM")
	fl.BoolVar(&f.logQueries, "log-queries", false, "log every question and what became of it")
	fl.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn, error")
	fl.StringVar(&f.logFormat, "log-format", "text", "text, json")
	cmd.MarkFlagsMutuallyExclusive("kubeconfig", "manifests")
	return cmd
}

func runDNS(cmd *cobra.Command, f dnsFlags) error {
	memory.Frugal()
	log, err := newLogger(cmd.ErrOrStderr(), f.logLevel, f.logFormat)
	if err != nil {
		return err
	}
	zone, err := f.zone()
	if err != nil {
		return err
	}
	server, forwarder, err := f.server(zone, log)
	if err != nil {
		return err
	}
	source, err := newDNSSource(f, zone.Pods == dns.PodsVerified, log)
	if err != nil {
		return err
	}
	if err := server.Listen(); err != nil {
		return fmt.Errorf("dns: %w", err)
	}
	d := &dnsServer{flags: f, server: server, forwarder: forwarder, source: source, zone: zone, log: log}
	if d.http, err = d.listenHTTP(f.health, f.metrics); err != nil {
		return err
	}
	log.Info("dns: listening", "addr", fmt.Sprint(server.Addrs()), "zone", zone.Domain)
	return d.run(cmd.Context())
}

// newDNSSource makes the source that the flags ask for.
func newDNSSource(f dnsFlags, pods bool, log *slog.Logger) (dnsSource, error) {
	if f.manifests != "" {
		return file.New(f.manifests, file.Options{Log: log})
	}
	o := kube.Options{Kubeconfig: f.kubeconfig, Kinds: kube.ForDNS, Log: log}
	if f.endpointNames == "all" {
		o.Kinds = kube.Namespaces | kube.AllServices
	}
	switch {
	case pods:
		o.Kinds |= kube.Pods
	case f.node != "":
		o.Kinds, o.Node = o.Kinds|kube.Pods, f.node
	}
	return kube.New(o)
}

// zone gives the zone's settings.
func (f dnsFlags) zone() (dns.Config, error) {
	domain, err := dns.ParseName(f.domain)
	if err != nil {
		return dns.Config{}, fmt.Errorf("--cluster-domain: %w", err)
	}
	if domain == dns.Root || len(domain) > 128 {
		return dns.Config{}, fmt.Errorf("--cluster-domain %q: want a name of 1 to 128 bytes", f.domain)
	}
	service, err := parseService(f.service)
	if err != nil || f.service == "" {
		return dns.Config{}, fmt.Errorf("--service %q: want NAMESPACE/NAME", f.service)
	}
	mode := dns.PodMode(f.pods)
	if !slices.Contains([]dns.PodMode{dns.PodsDisabled, dns.PodsInsecure, dns.PodsVerified}, mode) {
		return dns.Config{}, fmt.Errorf("--pods %q: want disabled, insecure or verified", f.pods)
	}
	if !slices.Contains([]string{"headless", "all"}, f.endpointNames) {
		return dns.Config{}, fmt.Errorf("--endpoint-names %q: want headless or all", f.endpointNames)
	}
	return dns.Config{
		Domain: domain, TTL: f.ttl, Pods: mode, Serial: uint32(time.Now().Unix()), AllEndpoints: f.endpointNames == "all",
		Service: service,
	}, nil
}

func (f dnsFlags) server(zone dns.Config, log *slog.Logger) (*dns.Server, *dns.Forwarder, error) {
	listen, err := listenAddrs(f.listen)
	if err != nil {
		return nil, nil, err
	}
	var forwarder *dns.Forwarder
	if !slices.Equal(f.upstreams, []string{"none"}) {
		ups, err := f.resolvers(listen, log)
		if err != nil {
			return nil, nil, err
		}
		c := dns.ForwardConfig{Upstreams: ups, Timeout: f.upstreamLimit, CacheBytes: f.cacheMiB << 20, MaxStale: f.serveStale, Log: log}
		if c.MaxStale == 0 {
			c.MaxStale = -1
		}
		if c.Stubs, err = parseStubs(f.stubs); err != nil {
			return nil, nil, err
		}
		if c.Hosts, err = f.hostsEntries(); err != nil {
			return nil, nil, err
		}
		forwarder = dns.NewForwarder(c)
	}
	return dns.NewServer(dns.ServerConfig{
		Listen: listen, Domain: zone.Domain, Forwarder: forwarder, LameDuck: f.lameDuck,
		LogQueries: f.logQueries, Log: log,
	}), forwarder, nil
}

// listenAddrs reads --listen. ":53" is all addresses of each family the machine
// has.
func listenAddrs(texts []string) ([]netip.AddrPort, error) {
	var out []netip.AddrPort
	for _, text := range texts {
		full := text
		if strings.HasPrefix(text, ":") {
			full = "0.0.0.0" + text
		}
		a, err := netip.ParseAddrPort(full)
		if err != nil {
			return nil, fmt.Errorf("--listen %q: want ADDR:PORT or :PORT", text)
		}
		out = append(out, a)
		if full != text && hasIPv6() {
			out = append(out, netip.AddrPortFrom(netip.IPv6Unspecified(), a.Port()))
		}
	}
	return out, nil
}

func hasIPv6() bool {
	c, err := net.ListenPacket("udp6", "[::]:0")
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// resolvers gives the upstreams, without those that are this server itself. That
// resolv.conf is missing or names none is no reason not to answer the cluster's
// names.
func (f dnsFlags) resolvers(listen []netip.AddrPort, log *slog.Logger) ([]netip.AddrPort, error) {
	given := len(f.upstreams) > 0
	ups, err := parseUpstreams(f.upstreams)
	if err != nil {
		return nil, err
	}
	if !given {
		if ups, err = dns.Resolvers(f.resolvConf); err != nil {
			log.Warn("dns: no resolvers: other names than the cluster's are answered with SERVFAIL", "err", err)
			return nil, nil
		}
	}
	var out []netip.AddrPort
	for _, u := range ups {
		switch self := isSelf(u, listen); {
		case self && given:
			return nil, fmt.Errorf("--upstream %s: that is this server", u)
		case self:
			log.Warn("dns: resolver left out: it is this server", "upstream", u, "file", f.resolvConf)
		default:
			out = append(out, u)
		}
	}
	return out, nil
}

func parseUpstreams(texts []string) ([]netip.AddrPort, error) {
	var out []netip.AddrPort
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, netip.AddrPortFrom(a, 53))
			continue
		}
		a, err := netip.ParseAddrPort(text)
		if err != nil {
			return nil, fmt.Errorf("--upstream %q: want ADDR, ADDR:PORT or [ADDR]:PORT", text)
		}
		out = append(out, a)
	}
	return out, nil
}

// isSelf says whether an upstream is one of the addresses listened on.
func isSelf(u netip.AddrPort, listen []netip.AddrPort) bool {
	for _, l := range listen {
		if l.Port() != u.Port() {
			continue
		}
		if l == u || l.Addr().IsUnspecified() && l.Addr().Is4() == u.Addr().Is4() && isLocal(u.Addr()) {
			return true
		}
	}
	return false
}

// isLocal says whether an address is one of this machine's (or pod's).
func isLocal(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	own, err := net.InterfaceAddrs()
	return err == nil && slices.ContainsFunc(own, func(n net.Addr) bool {
		p, err := netip.ParsePrefix(n.String())
		return err == nil && p.Addr() == a.WithZone("")
	})
}
