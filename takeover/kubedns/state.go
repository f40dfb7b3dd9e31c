package kubedns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/podlane/podlane/cluster/kube"
)

// Options name what is asked for.
type Options struct {
	Service   Name // of the cluster's DNS
	DaemonSet Name // Podlane's
	Settings  Name // the other server's ConfigMap; zero: it is not read
	// IPs are for a Service that is made; with none, the tenth of each Service range.
	IPs []netip.Addr
}

// State is what the cluster has.
type State struct {
	Options
	api     *kube.API
	service *service // nil: there is none
	raw     object   // of the Service
	own     daemonSet
	theirs  configMap // the other server's
	copy    configMap // of it, for Podlane's servers
}

// copied is the ConfigMap that Podlane's servers have the other one's settings in,
// and marked the annotation of their pods that tells which version of it.
const (
	copied = "podlane-dns-corefile"
	marked = "podlane.dev/corefile"
)

func (o Options) servicePath() string {
	return "/api/v1/namespaces/" + o.Service.Namespace + "/services/" + o.Service.Name
}

func (o Options) daemonSetPath() string {
	return "/apis/apps/v1/namespaces/" + o.DaemonSet.Namespace + "/daemonsets/" + o.DaemonSet.Name
}

func (o Options) copiedPath() string {
	return "/api/v1/namespaces/" + o.DaemonSet.Namespace + "/configmaps/" + copied
}

// Read asks the API server for all that counts.
func Read(ctx context.Context, api *kube.API, o Options) (*State, error) {
	if o.Service.Namespace != o.DaemonSet.Namespace {
		return nil, fmt.Errorf("the Service %s and the DaemonSet %s are in two namespaces: a Service leads to pods of its own one alone", o.Service, o.DaemonSet)
	}
	s := &State{Options: o, api: api}
	found, err := s.readDaemonSet(ctx)
	if err == nil && !found {
		err = fmt.Errorf("there is no DaemonSet %s: apply deploy/podlane.yaml first", o.DaemonSet)
	}
	if err != nil {
		return nil, err
	}
	if found, err = api.Get(ctx, o.servicePath(), &s.raw); err != nil || !found {
		s.raw = nil
		return s, err
	}
	text, err := json.Marshal(s.raw)
	if err != nil {
		return nil, err
	}
	s.service = &service{}
	if err := json.Unmarshal(text, s.service); err != nil {
		return nil, fmt.Errorf("the Service %s: %w", o.Service, err)
	}
	if s.Ours() || o.Settings == (Name{}) {
		return s, nil
	}
	_, err1 := api.Get(ctx, "/api/v1/namespaces/"+o.Settings.Namespace+"/configmaps/"+o.Settings.Name, &s.theirs)
	_, err2 := api.Get(ctx, o.copiedPath(), &s.copy)
	return s, errors.Join(err1, err2)
}

func (s *State) readDaemonSet(ctx context.Context) (bool, error) {
	s.own = daemonSet{}
	found, err := s.api.Get(ctx, s.daemonSetPath(), &s.own)
	if err == nil && found && len(s.own.Spec.Selector.MatchLabels) == 0 {
		err = fmt.Errorf("DaemonSet %s: spec.selector.matchLabels is empty", s.DaemonSet)
	}
	return found, err
}

// Missing says that there is no Service.
func (s *State) Missing() bool { return s.service == nil }

// Ours says that the Service leads to Podlane's servers.
func (s *State) Ours() bool {
	return s.service != nil && maps.Equal(s.service.Spec.Selector, s.own.Spec.Selector.MatchLabels)
}

// Switched says that it did not always.
func (s *State) Switched() bool { return s.Ours() && s.service.Metadata.Annotations[before] != "" }

// Corefile is the other server's; "" is none.
func (s *State) Corefile() string { return s.theirs.Data["Corefile"] }

// Given says whether Podlane's servers have a flag anyhow, so that the Corefile's
// does not count.
func (s *State) Given(flag string) bool {
	for _, c := range s.own.Spec.Template.Spec.Containers {
		for _, a := range c.Args {
			if a == "--"+flag || strings.HasPrefix(a, "--"+flag+"=") && a != "--"+flag+"=$(CLUSTER_DOMAIN)" {
				return true
			}
		}
	}
	return false
}

// String says what there is.
func (s *State) String() string {
	own := fmt.Sprintf("; DaemonSet %s, %d of %d ready", s.DaemonSet, s.own.Status.Ready, s.own.Status.Desired)
	if s.Missing() {
		return "no Service " + s.Service.String() + own
	}
	who := "the pods " + selector(s.service.Spec.Selector)
	switch {
	case s.Ours():
		who = "podlane dns"
	case len(s.service.Spec.Selector) == 0:
		who = "endpoints made by hand"
	}
	return fmt.Sprintf("Service %s at %s, which leads to %s%s", s.Service, strings.Join(s.service.Spec.ClusterIPs, " "), who, own)
}

// Found is what there is, as a document.
type Found struct {
	Service   string   `json:"service"`
	Addresses []string `json:"addresses,omitempty"`
	// LeadsTo is "podlane", "others", "endpoints made by hand", or empty where there is no Service.
	LeadsTo   string            `json:"leads_to,omitempty"`
	Selector  map[string]string `json:"selector,omitempty"`
	DaemonSet string            `json:"daemonset"`
	Ready     int               `json:"ready"` // of the DaemonSet's pods
	Desired   int               `json:"desired"`
}

// Found gives what String says.
func (s *State) Found() Found {
	f := Found{Service: s.Service.String(), DaemonSet: s.DaemonSet.String(), Ready: s.own.Status.Ready, Desired: s.own.Status.Desired}
	if s.Missing() {
		return f
	}
	f.Addresses, f.Selector, f.LeadsTo = s.service.Spec.ClusterIPs, s.service.Spec.Selector, "others"
	switch {
	case s.Ours():
		f.LeadsTo = "podlane"
	case len(f.Selector) == 0:
		f.LeadsTo = "endpoints made by hand"
	}
	return f
}

// Check says why the Service cannot be switched over.
func (s *State) Check() error {
	switch spec := s.service.Spec; {
	case spec.Type == "ExternalName" || slices.Contains(spec.ClusterIPs, "None") || len(spec.ClusterIPs) == 0:
		return fmt.Errorf("the Service %s has no cluster IP: it is not what pods ask", s.Service)
	case len(spec.Selector) == 0:
		return fmt.Errorf("the Service %s has no selector: whoever makes its endpoints by hand would go on", s.Service)
	case len(s.IPs) > 0 && !slices.Contains(spec.ClusterIPs, s.IPs[0].String()):
		return fmt.Errorf("--dns-ip %s: the Service %s is there and has %s, which does not change", s.IPs[0], s.Service, strings.Join(spec.ClusterIPs, " "))
	}
	return nil
}

// Remarks are what does not go as one may think.
func (s *State) Remarks() []string {
	var out []string
	for _, p := range s.service.Spec.Ports {
		if p.target() == "" {
			out = append(out, fmt.Sprintf("port %s %d/%s: podlane dns has no such port; it will be refused", p.Name, p.Port, p.Protocol))
		}
	}
	if m := s.service.Metadata.Labels["addonmanager.kubernetes.io/mode"]; m == "Reconcile" {
		out = append(out, "label addonmanager.kubernetes.io/mode=Reconcile: the addon manager applies the Service again, and may so mix its selector with ours, which fits no pod: turn the addon off first")
	}
	if notes := s.service.Metadata.Annotations; notes["kubectl.kubernetes.io/last-applied-configuration"] != "" || notes["meta.helm.sh/release-name"] != "" {
		out = append(out, "whoever applies the Service again from its own manifest or chart mixes that selector with ours, which fits no pod: --undo before that")
	}
	return out
}

// address finds where a new Service goes.
func (s *State) address(ctx context.Context) ([]netip.Addr, string, error) {
	if len(s.IPs) > 0 {
		return s.IPs, "--dns-ip", nil
	}
	var cidr serviceCIDR
	found, err := s.api.Get(ctx, "/apis/networking.k8s.io/v1/servicecidrs/kubernetes", &cidr)
	if err != nil {
		return nil, "", err
	}
	if found && len(cidr.Spec.CIDRs) > 0 {
		var ips []netip.Addr
		for _, c := range cidr.Spec.CIDRs {
			ip, err := tenth(c)
			if err != nil {
				return nil, "", err
			}
			ips = append(ips, ip)
		}
		return ips, "the tenth of " + strings.Join(cidr.Spec.CIDRs, " "), nil
	}
	// Before Kubernetes 1.33. The Service "kubernetes" has the range's first address.
	var first service
	found, err = s.api.Get(ctx, "/api/v1/namespaces/default/services/kubernetes", &first)
	if err != nil || !found || len(first.Spec.ClusterIPs) == 0 {
		return nil, "", errors.Join(err, errors.New("the range of cluster IPs is not known: say which address the DNS has with --dns-ip"))
	}
	ip, err := netip.ParseAddr(first.Spec.ClusterIPs[0])
	if err != nil {
		return nil, "", err
	}
	ip, err = after(ip, 9, netip.PrefixFrom(ip, 0).Masked())
	return []netip.Addr{ip}, "nine after " + first.Spec.ClusterIPs[0] + " of the Service kubernetes", err
}
