// Package history makes random histories of Services, endpoint slices and what else
// a service proxy depends on, and makes a history that shows something as short as
// it can be. It knows nothing of any proxy.
package history

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/yaml"
)

// History is what happens to one node.
type History struct {
	Seed uint64 `json:"seed"`
	// NodePortAddresses is kube-proxy's option; none is "primary".
	NodePortAddresses []string `json:"nodePortAddresses,omitempty"`
	Steps             []Step   `json:"steps"`
}

// Step is what happens between two looks at the node.
type Step []Change

// Change is one of these.
type Change struct {
	Service       *corev1.Service            `json:"service,omitempty"`
	Slice         *discoveryv1.EndpointSlice `json:"slice,omitempty"`
	DeleteService string                     `json:"deleteService,omitempty"`
	DeleteSlice   string                     `json:"deleteSlice,omitempty"`
	// Zone is the node's label; "-" is none.
	Zone string `json:"zone,omitempty"`
	// ServiceCIDRs are all there are; "-" is none.
	ServiceCIDRs []string `json:"serviceCIDRs,omitempty"`
	// Bind gives the node one more address of its own; Unbind takes it away.
	Bind    string `json:"bind,omitempty"`
	Unbind  string `json:"unbind,omitempty"`
	Restart bool   `json:"restart,omitempty"` // of the proxy
}

// YAML gives the history for people, and for Parse.
func (h History) YAML() string {
	b, err := yaml.Marshal(h)
	if err != nil {
		return err.Error()
	}
	lines := strings.SplitAfter(string(b), "\n")
	lines = slices.DeleteFunc(lines, func(l string) bool {
		return strings.HasSuffix(l, "creationTimestamp: null\n") || strings.HasSuffix(l, "loadBalancer: {}\n") || strings.HasSuffix(l, "status: {}\n")
	})
	return strings.Join(lines, "")
}

// Parse reads what YAML gave.
func Parse(text []byte) (h History, err error) {
	err = yaml.UnmarshalStrict(text, &h)
	return h, err
}

// State is what there is after some steps.
type State struct {
	Services     map[string]*corev1.Service
	Slices       map[string]*discoveryv1.EndpointSlice
	Zone         string
	ServiceCIDRs []string
	Bound        []string
}

// NewState is that before the first step.
func NewState() *State {
	return &State{Services: map[string]*corev1.Service{}, Slices: map[string]*discoveryv1.EndpointSlice{}}
}

// Apply makes one change.
func (s *State) Apply(c Change) {
	switch {
	case c.Service != nil:
		s.Services[c.Service.Name] = c.Service
	case c.Slice != nil:
		s.Slices[c.Slice.Name] = c.Slice
	case c.DeleteService != "":
		delete(s.Services, c.DeleteService)
	case c.DeleteSlice != "":
		delete(s.Slices, c.DeleteSlice)
	case c.Zone != "":
		s.Zone = strings.TrimPrefix(c.Zone, "-")
	case len(c.ServiceCIDRs) > 0:
		s.ServiceCIDRs = slices.DeleteFunc(slices.Clone(c.ServiceCIDRs), func(t string) bool { return t == "-" })
	case c.Bind != "":
		s.Bound = append(slices.DeleteFunc(slices.Clone(s.Bound), func(b string) bool { return b == c.Bind }), c.Bind)
	case c.Unbind != "":
		s.Bound = slices.DeleteFunc(slices.Clone(s.Bound), func(b string) bool { return b == c.Unbind })
	}
}

// Clone gives a copy that later changes do not reach.
func (s *State) Clone() *State {
	c := *s
	c.Services, c.Slices = maps.Clone(s.Services), maps.Clone(s.Slices)
	return &c
}

// Of gives the slices of a Service, by name.
func (s *State) Of(service string) []*discoveryv1.EndpointSlice {
	var of []*discoveryv1.EndpointSlice
	for _, name := range slices.Sorted(maps.Keys(s.Slices)) {
		if s.Slices[name].Labels[discoveryv1.LabelServiceName] == service {
			of = append(of, s.Slices[name])
		}
	}
	return of
}

// Changes gives the whole state as changes.
func (s *State) Changes() Step {
	step := Step{{Zone: s.Zone + "-"}, {ServiceCIDRs: append(slices.Clone(s.ServiceCIDRs), "-")}}
	if s.Zone != "" {
		step[0].Zone = s.Zone
	}
	for _, b := range s.Bound {
		step = append(step, Change{Bind: b})
	}
	for _, name := range slices.Sorted(maps.Keys(s.Services)) {
		step = append(step, Change{Service: s.Services[name]})
	}
	for _, name := range slices.Sorted(maps.Keys(s.Slices)) {
		step = append(step, Change{Slice: s.Slices[name]})
	}
	return step
}

// After gives the state after the first n steps.
func (h History) After(n int) *State {
	s := NewState()
	for _, step := range h.Steps[:n] {
		for _, c := range step {
			s.Apply(c)
		}
	}
	return s
}
