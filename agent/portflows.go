package agent

import (
	"errors"
	"sync"

	"github.com/podlane/podlane/hostport"
	"github.com/podlane/podlane/internal/newest"
	"github.com/podlane/podlane/kernel/conntrack"
)

// portFlows is what is known of the UDP flows to ports of the node that lead to its
// pods. The loop tells of the ports before they are in the kernel, and once more when
// they are; the goroutine of the flows looks at these then.
type portFlows struct {
	applied newest.Chan[int] // the number of the change that is in the kernel
	change  int              // of the goroutine of the flows: the one to look for; 0: none

	mu    sync.Mutex
	index hostport.Flows
}

// update tells of the ports to come, and gives the number of the change.
func (p *portFlows) update(ports []hostport.Port) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.index.Update(ports)
	return p.index.Change()
}

func (p *portFlows) any() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.index.Any()
}

func (p *portFlows) settled(change int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.index.Settled(change)
}

// lookPorts forgets the flows to ports of the node that lead elsewhere than the rules.
// What a Service answers for is the Services' own.
func (f *flows) lookPorts() error {
	if f.ports.change == 0 {
		return nil
	}
	if f.ports.any() {
		if err := f.forgetPorts(); err != nil {
			return err
		}
		f.ports.settled(f.ports.change)
	}
	f.ports.change = 0
	return nil
}

func (f *flows) forgetPorts() error {
	conn, err := conntrack.Dial(0)
	if err != nil {
		return err
	}
	defer conn.Close()
	own, err := ownAddrs()
	if err != nil {
		return err
	}
	stale := func(flow conntrack.Flow) bool {
		dst := flow.Orig.Dst
		if dst.Addr().IsLoopback() || !own(dst.Addr()) || f.index.Has(dst) {
			return false
		}
		f.ports.mu.Lock()
		defer f.ports.mu.Unlock()
		return f.ports.index.Stale(dst, flow.Reply.Src)
	}
	var errs []error
	n := 0
	for _, v6 := range []bool{false, true} {
		found, err := find(conn, v6, stale)
		errs = append(errs, err)
		for _, flow := range found {
			if stale(flow) {
				errs = append(errs, conn.Delete(flow))
				n++
			}
		}
	}
	if n > 0 {
		f.log.Info("stale UDP flows to hostPorts forgotten", "flows", n)
	}
	return errors.Join(errs...)
}
