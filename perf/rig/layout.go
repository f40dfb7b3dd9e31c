package rig

import (
	"fmt"
	"slices"
	"strings"

	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/overlay/fastpath"
)

// A layout is how a lab's pods are joined: an overlay of ours, with or without
// the fast path, or flannel's, made by hand.
type layout struct {
	name     string // as it was asked for
	overlay  overlay.Mode
	fastPath fastpath.Mode // "": the default
	socketLB fastpath.Mode // likewise
	flannel  string        // vxlan or host-gw; "": ours
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
