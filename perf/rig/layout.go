package rig

import (
	"fmt"
	"slices"
	"strings"

	"github.com/podlane/podlane/agent"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/overlay/fastpath"
)

// A layout is how a lab's pods are joined: an overlay of ours, with or without
// the fast path, or flannel's, made by hand; and how its Services are translated.
type layout struct {
	name     string // as it was asked for, and the backend where there are several
	overlay  overlay.Mode
	fastPath fastpath.Mode // "": the default
	socketLB fastpath.Mode // likewise
	flannel  string        // vxlan or host-gw; "": ours
	backend  string        // of the service proxy
	services int           // beside the one that is measured
}

// Layouts describes what can be asked for.
const Layouts = "auto, direct, vxlan, each with +fast (path) or +normal (path) where the default is not meant, and +fast+lb with Services translated at the socket; flannel-vxlan, flannel-host-gw"

func parseLayout(name string) (layout, error) {
	l := layout{name: name}
	if how, is := strings.CutPrefix(name, "flannel-"); is {
		l.overlay, l.flannel, l.fastPath, l.socketLB = overlay.Direct, how, fastpath.Off, fastpath.Off
		if how != "vxlan" && how != "host-gw" {
			return l, fmt.Errorf("overlay %q: want %s", name, Layouts)
		}
		return l, nil
	}
	mode, path, has := strings.Cut(name, "+")
	l.overlay = overlay.Mode(mode)
	switch {
	case !slices.Contains([]overlay.Mode{overlay.Auto, overlay.Direct, overlay.VXLAN}, l.overlay):
	case !has:
		return l, nil
	case path == "fast", path == "fast+lb":
		l.fastPath, l.socketLB = fastpath.On, fastpath.Off
		if path == "fast+lb" {
			l.socketLB = fastpath.On
		}
		return l, nil
	case path == "normal":
		l.fastPath, l.socketLB = fastpath.Off, fastpath.Off
		return l, nil
	}
	return l, fmt.Errorf("overlay %q: want %s", name, Layouts)
}

// Backends are those of the service proxy that can be asked for.
var Backends = []string{string(agent.NFTables), string(agent.IPTables)}

// maxServices is how many further Services a lab may have.
const maxServices = 20000

// A variant is how Services are translated, and among how many.
type variant struct {
	suffix   string // of the layout's name, where there are several
	backend  string
	services int
}

func (o Options) variants() (all []variant, err error) {
	backends, counts := o.Backends, o.Services
	if len(backends) == 0 {
		backends = []string{string(agent.AutoBackend)}
	}
	if len(counts) == 0 {
		counts = []int{0}
	}
	for i, backend := range backends {
		if len(o.Backends) > 0 && !slices.Contains(Backends, backend) || slices.Contains(backends[:i], backend) {
			return nil, fmt.Errorf("proxy backend %q: want each of %s once", backend, strings.Join(Backends, ", "))
		}
		for j, n := range counts {
			if n < 0 || n > maxServices || slices.Contains(counts[:j], n) {
				return nil, fmt.Errorf("%d further Services: want each number once, from 0 to %d", n, maxServices)
			}
			v := variant{backend: backend, services: n}
			if len(backends) > 1 {
				v.suffix = "+" + backend
			}
			if len(counts) > 1 {
				v.suffix += fmt.Sprintf("+%dsvc", n)
			}
			all = append(all, v)
		}
	}
	return all, nil
}

// layouts are all that is asked for: each overlay with each variant, flannel's once, as it has no Services here.
func (o Options) layouts() (all []layout, err error) {
	variants, err := o.variants()
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for i, name := range o.overlays() {
		l, err := parseLayout(name)
		if err != nil {
			return nil, err
		}
		if seen[name] || i == 0 && l.flannel != "" {
			return nil, fmt.Errorf("overlay %q: want each once, and not flannel's first", name)
		}
		seen[name] = true
		if l.flannel != "" {
			l.backend = variants[0].backend
			all = append(all, l)
			continue
		}
		for _, v := range variants {
			l.name, l.backend, l.services = name+v.suffix, v.backend, v.services
			all = append(all, l)
		}
	}
	return all, nil
}
