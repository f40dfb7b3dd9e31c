package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/pflag"

	"github.com/podlane/podlane/overlay"
)

// overlayFlags are the settings of the overlay, the same on all nodes of a cluster.
type overlayFlags struct {
	mode, cluster string
	port          uint16
	vni           uint32
}

// add adds the flags; where, such as "with -f: ", begins what is said of each.
func (f *overlayFlags) add(fl *pflag.FlagSet, where string) {
	fl.StringVar(&f.mode, "overlay", string(overlay.Auto), where+"how packets reach other nodes' pods: auto, vxlan, direct")
	fl.StringVar(&f.cluster, "cluster", "podlane", where+"the cluster's name, the same on all its nodes")
	fl.Uint16Var(&f.port, "vxlan-port", overlay.DefaultPort, where+"UDP port of VXLAN, the same on all nodes")
	fl.Uint32Var(&f.vni, "vxlan-vni", overlay.DefaultVNI, where+"VNI of VXLAN, the same on all nodes")
}

func (f *overlayFlags) config() (overlay.Config, error) {
	m := overlay.Mode(f.mode)
	var errs []error
	if !slices.Contains([]overlay.Mode{overlay.Auto, overlay.VXLAN, overlay.Direct}, m) {
		errs = append(errs, fmt.Errorf("--overlay %q: want auto, vxlan or direct", f.mode))
	}
	if f.port == 0 || f.vni == 0 {
		errs = append(errs, errors.New("--vxlan-port and --vxlan-vni: want numbers above 0"))
	}
	if f.cluster == "" {
		errs = append(errs, errors.New("--cluster is empty: want the cluster's name, the same on all its nodes"))
	}
	c := overlay.Config{Mode: m, Cluster: f.cluster, Port: f.port, VNI: f.vni}
	return c, errors.Join(append(errs, c.Valid())...)
}
