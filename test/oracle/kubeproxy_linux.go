// Package oracle gives the same history to kube-proxy's nftables proxier and to
// Podlane's service proxy, each in a node of its own with a real kernel, and
// compares what packets meet there, and with proxy.Table.Lookup. It is a test: no
// part of it is in a program.
package oracle

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/proxy"
	"k8s.io/kubernetes/pkg/proxy/apis"
	"k8s.io/kubernetes/pkg/proxy/nftables"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"

	"github.com/podlane/podlane/test/oracle/history"
	"github.com/podlane/podlane/test/oracle/world"
)

// kubeProxy is kube-proxy's proxier in a node, with what surrounds it in kube-proxy
// itself: which objects it is told of, and when it starts.
type kubeProxy struct {
	*world.World
	nodePortAddresses []string
	proxiers          []*nftables.Proxier // IPv4, IPv6
	state             *history.State
	zone              string
	errs              logged
}

// logged collects the errors that the proxier only logs.
type logged struct {
	sync.Mutex
	list []string
}

func (l *logged) logger() klog.Logger {
	return logr.New(errorSink{funcr.New(func(_, args string) {
		l.Lock()
		defer l.Unlock()
		if !strings.Contains(args, "Failed to list existing nftables objects") { // there are none at first
			l.list = append(l.list, args)
		}
	}, funcr.Options{}).GetSink()})
}

func (l *logged) take() error {
	l.Lock()
	defer l.Unlock()
	list := l.list
	l.list = nil
	if len(list) == 0 {
		return nil
	}
	return errors.New(strings.Join(list, "; "))
}

// errorSink passes on errors alone.
type errorSink struct{ logr.LogSink }

func (errorSink) Enabled(int) bool { return false }

func (e errorSink) WithValues(kv ...any) logr.LogSink { return errorSink{e.LogSink.WithValues(kv...)} }

func newKubeProxy(w *world.World, nodePortAddresses []string) (*kubeProxy, error) {
	k := &kubeProxy{World: w, nodePortAddresses: nodePortAddresses, state: history.NewState()}
	if len(k.nodePortAddresses) == 0 { // "primary": server_linux.go, platformApplyDefaults
		for _, a := range history.NodeAddrs {
			k.nodePortAddresses = append(k.nodePortAddresses, netip.PrefixFrom(a, a.BitLen()).String())
		}
	}
	return k, k.start()
}

// start makes new proxiers and tells them of all there is. Local pods are told by
// the interface that they come from.
func (k *kubeProxy) start() error {
	k.proxiers = nil
	local := proxyutil.NewDetectLocalByInterfaceNamePrefix("pods")
	ctx := klog.NewContext(context.Background(), k.errs.logger())
	err := k.Do(func() error {
		for i, family := range []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol} {
			p, err := nftables.NewProxier(ctx, family, time.Minute, time.Second, false, 14, local, history.Node,
				net.IP(history.NodeAddrs[i].AsSlice()), nil, nil, k.nodePortAddresses, false)
			if err != nil {
				return fmt.Errorf("kube-proxy: %w", err)
			}
			k.proxiers = append(k.proxiers, p)
		}
		for _, c := range k.state.Changes() {
			k.tell(history.NewState(), c)
		}
		for _, p := range k.proxiers {
			p.OnServiceSynced()
			p.OnEndpointSlicesSynced()
		}
		return nil
	})
	return errors.Join(err, k.errs.take())
}

// step makes the changes and then syncs once.
func (k *kubeProxy) step(s history.Step) error {
	for _, c := range s {
		if c.Restart {
			if err := k.start(); err != nil {
				return err
			}
			continue
		}
		if err := k.Do(func() error { k.tell(k.state, c); return nil }); err != nil {
			return err
		}
		k.state.Apply(c)
	}
	return k.sync()
}

// sync is what the proxier's own loop would call; OnServiceSynced is the way to it
// from outside.
func (k *kubeProxy) sync() error {
	err := k.Do(func() error {
		for _, p := range k.proxiers {
			p.OnServiceSynced()
		}
		return nil
	})
	return errors.Join(err, k.errs.take())
}

// tell is what the informers of kube-proxy would do.
func (k *kubeProxy) tell(before *history.State, c history.Change) {
	switch {
	case c.Service != nil:
		k.service(watched(before.Services[c.Service.Name]), watched(c.Service))
	case c.DeleteService != "":
		k.service(watched(before.Services[c.DeleteService]), nil)
	case c.Slice != nil:
		k.slice(watchedSlice(before.Slices[c.Slice.Name]), watchedSlice(c.Slice))
	case c.DeleteSlice != "":
		k.slice(watchedSlice(before.Slices[c.DeleteSlice]), nil)
	case c.Zone != "":
		k.zone = strings.TrimPrefix(c.Zone, "-")
		k.topology()
	case len(c.ServiceCIDRs) > 0:
		s := history.NewState()
		s.Apply(c)
		for _, p := range k.proxiers {
			p.OnServiceCIDRsChanged(s.ServiceCIDRs)
		}
		k.topology() // or it would come into force within the next hour
	}
}

func (k *kubeProxy) topology() {
	labels := map[string]string{}
	if k.zone != "" {
		labels[corev1.LabelTopologyZone] = k.zone
	}
	for _, p := range k.proxiers {
		p.OnTopologyChange(labels)
	}
}

// watched gives nil for a Service that is not in kube-proxy's watch: server.go, Run.
func watched(s *corev1.Service) *corev1.Service {
	if s == nil || s.Labels[apis.LabelServiceProxyName] != "" || s.Spec.ClusterIP == corev1.ClusterIPNone {
		return nil
	}
	s = s.DeepCopy()
	s.Spec.HealthCheckNodePort = 0 // a proxier cannot be told to close its listeners
	return s
}

func watchedSlice(s *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	if s == nil {
		return nil
	}
	if _, headless := s.Labels[corev1.IsHeadlessService]; headless {
		return nil
	}
	return s
}

func (k *kubeProxy) service(was, now *corev1.Service) {
	for _, p := range k.proxiers {
		if was != nil || now != nil {
			p.OnServiceUpdate(was, now)
		}
	}
}

// slice tells the proxier of the slice's family: metaproxier.
func (k *kubeProxy) slice(was, now *discoveryv1.EndpointSlice) {
	var p proxy.Provider = k.proxiers[0]
	if s := slices.Concat(list(was), list(now)); len(s) > 0 && s[0].AddressType == discoveryv1.AddressTypeIPv6 {
		p = k.proxiers[1]
	}
	switch {
	case was == nil && now != nil:
		p.OnEndpointSliceAdd(now)
	case was != nil && now != nil:
		p.OnEndpointSliceUpdate(was, now)
	case was != nil:
		p.OnEndpointSliceDelete(was)
	}
}

func list(s *discoveryv1.EndpointSlice) []*discoveryv1.EndpointSlice {
	if s == nil {
		return nil
	}
	return []*discoveryv1.EndpointSlice{s}
}
