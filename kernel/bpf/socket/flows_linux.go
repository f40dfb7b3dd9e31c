package socket

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// Flows are how many connections were translated, to each frontend and, for
// frontends that ask for it, to each endpoint.
type Flows struct {
	Frontends map[netip.AddrPort]uint64
	Endpoints map[[2]netip.AddrPort]uint64 // frontend and endpoint
}

// ReadFlows reads the counters that are pinned below dir (Config.Dir), with no agent
// and from any goroutine. Where nothing is pinned there are none.
func ReadFlows(dir string) (Flows, error) {
	f := Flows{map[netip.AddrPort]uint64{}, map[[2]netip.AddrPort]uint64{}}
	var at objectsPlace
	var pair objectsPair
	err := errors.Join(
		eachFlow(filepath.Join(dir, layout, objectsMapPlFlows), &at, func(n uint64) { f.Frontends[fromPlace(at)] = n }),
		eachFlow(filepath.Join(dir, layout, objectsMapPlPairFlows), &pair, func(n uint64) {
			f.Endpoints[[2]netip.AddrPort{fromPlace(pair.Frontend), fromPlace(pair.Endpoint)}] = n
		}))
	return f, err
}

func eachFlow(path string, key any, f func(uint64)) error {
	// Without CAP_BPF the kernel refuses to look, also where there is nothing.
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("bpf map %s: %w", path, err)
	}
	defer m.Close()
	var each []uint64
	all := m.Iterate()
	for all.Next(key, &each) {
		f(sum(each))
	}
	return all.Err()
}
