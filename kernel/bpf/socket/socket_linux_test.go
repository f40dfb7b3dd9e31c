package socket

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/kernel/bpf"
	"github.com/podlane/podlane/kernel/link"
	proxy "github.com/podlane/podlane/proxy/ebpf"
)

var (
	web4, web6 = addr("10.96.0.1:80"), addr("[fd00:96::1]:80")
	ends4      = []netip.AddrPort{addr("10.1.0.1:8080"), addr("10.1.0.2:8081"), addr("10.1.0.3:8080")}
	ends6      = []netip.AddrPort{addr("[fd00:1::1]:8080"), addr("[fd00:1::2]:8081")}
)

func addr(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// machine is a network namespace with endpoints and a client, and a handle whose
// programs are at the client's cgroup.
type machine struct {
	*Handle
	t      testing.TB
	config Config
	cookie uint64
	client *client
	have   map[proxy.Frontend]*proxy.Service
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	nettest.New(t)
	m := &machine{t: t, config: Config{Dir: bpffs(t), Cgroup: newCgroup(t)}, have: map[proxy.Frontend]*proxy.Service{}}
	for _, a := range slices.Concat(ends4, ends6) {
		args := []string{"addr", "add", netip.PrefixFrom(a.Addr(), a.Addr().BitLen()).String(), "dev", "lo"}
		if a.Addr().Is6() {
			args = append(args, "nodad")
		}
		nettest.Run(t, "ip", args...)
		serve(t, a)
	}
	// What is not translated comes here at once, and is refused.
	nettest.Run(t, "ip", "addr", "add", "10.96.0.0/16", "dev", "lo")
	nettest.Run(t, "ip", "-6", "addr", "add", "fd00:96::1/128", "dev", "lo", "nodad")
	m.cookie = cookieHere(t)
	m.open()
	m.client = newClient(t, m.config.Cgroup)
	return m
}

func (m *machine) open() {
	m.t.Helper()
	h, err := Open(m.config)
	if errors.Is(err, bpf.ErrUnavailable) && !errors.Is(err, bpf.ErrRefused) {
		m.t.Skip(err)
	}
	must(m.t, err)
	m.Handle = h
	m.t.Cleanup(h.Close)
	_, err = h.Attach()
	must(m.t, err)
	must(m.t, h.SetClients(map[uint64]bool{m.cookie: true}))
}

func cookieHere(t testing.TB) uint64 {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	must(t, err)
	defer unix.Close(fd)
	cookie, err := link.NetnsCookie(fd)
	must(t, err)
	return cookie
}

// set brings a frontend to endpoints.
func (m *machine) set(at proxy.Frontend, now *proxy.Service) {
	m.t.Helper()
	must(m.t, m.Write([]proxy.Change{{Frontend: at, Old: m.have[at], New: now}}))
	m.have[at] = now
	if now == nil {
		delete(m.have, at)
	}
}

func to(ends ...netip.AddrPort) *proxy.Service { return &proxy.Service{Backends: ends} }

// hits connects so often, and gives how often each endpoint answered. All must.
func (m *machine) hits(at netip.AddrPort, n int) map[string]int {
	m.t.Helper()
	hits := map[string]int{}
	for _, one := range m.client.do(task{To: []netip.AddrPort{at}, Again: n - 1}) {
		if one.Err != "" || one.Peer != at {
			m.t.Fatalf("%s: %+v", at, one)
		}
		hits[one.Server]++
	}
	return hits
}

func TestConnect(t *testing.T) {
	m := newMachine(t)
	m.set(web4, to(ends4...))
	m.set(web6, to(ends6...))
	for at, ends := range map[netip.AddrPort][]netip.AddrPort{web4: ends4, web6: ends6} {
		hits := m.hits(at, 600)
		for _, e := range ends {
			if n := hits[e.String()]; n < 600/len(ends)*6/10 {
				t.Errorf("%s: %d of 600 connections went to %s: %v", at, n, e, hits)
			}
		}
		if len(hits) != len(ends) {
			t.Errorf("%s: %v", at, hits)
		}
	}
	mapped := m.client.do(task{To: []netip.AddrPort{web4}, Mapped: true})[0]
	if mapped.Err != "" || mapped.Peer.Addr().Unmap() != web4.Addr() || !slices.Contains(ends4, addr(mapped.Server)) {
		t.Errorf("by an IPv6 socket: %+v", mapped)
	}
	flows, err := ReadFlows(m.config.Dir)
	must(t, err)
	if flows.Frontends[web4] != 601 || flows.Frontends[web6] != 600 || len(flows.Endpoints) != 0 {
		t.Errorf("flows %v", flows)
	}
	counts, err := m.Counters()
	must(t, err)
	if counts[0] != (bpf.Count{Reason: "translated", Packets: 1201}) {
		t.Errorf("counters %v", counts)
	}
}

// What the programs have no say in meets what it met without them.
func TestConnect_others(t *testing.T) {
	m := newMachine(t)
	m.set(web4, to(ends4[0]))
	refused := unix.ECONNREFUSED.Error()
	for name, tc := range map[string]struct {
		task task
		want string
	}{
		"another port":     {task{To: []netip.AddrPort{addr("10.96.0.1:81")}}, refused},
		"another address":  {task{To: []netip.AddrPort{addr("10.96.0.2:80")}}, refused},
		"UDP":              {task{To: []netip.AddrPort{web4}, UDP: true}, refused},
		"the endpoint":     {task{To: []netip.AddrPort{ends4[0]}}, ""},
		"Service, direct":  {task{To: []netip.AddrPort{web4, ends4[0]}}, ""},
		"direct, Service":  {task{To: []netip.AddrPort{ends4[1], web4}}, ""},
		"Service, another": {task{To: []netip.AddrPort{web4, addr("10.96.0.2:80")}}, refused},
	} {
		got := m.client.do(tc.task)[0]
		last := tc.task.To[len(tc.task.To)-1]
		if got.Err != tc.want || tc.want == "" && got.Peer != last {
			t.Errorf("%s: %+v, want %q", name, got, tc.want)
		}
	}
	m.set(web4, &proxy.Service{}) // no endpoint: the rules refuse it, or not
	if got := m.client.one(web4); got.Err != refused {
		t.Errorf("no endpoint: %+v", got)
	}
	m.set(web4, to(ends4[0]))
	must(t, m.SetClients(nil))
	if got := m.client.one(web4); got.Err != refused {
		t.Errorf("a namespace that takes no part: %+v", got)
	}
	must(t, m.SetClients(map[uint64]bool{m.cookie: true}))
	outside := newCgroup(t)
	if got := newClient(t, outside).one(web4); got.Err != refused {
		t.Errorf("from another cgroup: %+v", got)
	}
}

// Endpoints come and go under connections: each meets one that was or will be.
func TestWrite_underTraffic(t *testing.T) {
	m := newMachine(t)
	sets := [][]netip.AddrPort{ends4, {ends4[2]}, {ends4[1], ends4[2]}, {ends4[2], ends4[0]}, {ends4[2], ends4[1], ends4[0]}}
	m.set(web4, &proxy.Service{Backends: sets[0], Count: true})
	must(t, m.client.write.Encode(task{To: []netip.AddrPort{web4}, Again: 3000 - 1}))
	done := make(chan []met, 1)
	go func() {
		var all []met
		_ = m.client.read.Decode(&all)
		done <- all
	}()
	rounds := 0
	for all := []met(nil); all == nil; rounds++ {
		m.set(web4, &proxy.Service{Backends: sets[rounds%len(sets)], Count: rounds%7 != 0})
		select {
		case all = <-done:
			for _, one := range all {
				if one.Err != "" || one.Peer != web4 {
					t.Fatalf("after %d changes: %+v", rounds, one)
				}
			}
			if len(all) != 3000 {
				t.Fatalf("%d connections", len(all))
			}
		default:
		}
	}
	if rounds < 100 {
		t.Errorf("%d changes only", rounds)
	}
	m.set(web4, nil)
	m.empty()
}

// Memory of an element that is replaced goes to another Service's at once, while
// programs may still read it: no connection to the one gets to an endpoint of the other.
func TestConnect_memoryUsedAgain(t *testing.T) {
	m := newMachine(t)
	others := []proxy.Frontend{addr("10.96.0.2:80"), addr("10.96.0.3:80"), addr("10.96.0.4:80")}
	write := func() {
		must(t, m.objects.PlSlots.Put(slot(toPlace(web4), 0), toPlace(ends4[0])))
		must(t, m.objects.PlServices.Put(toPlace(web4), objectsService{Count: 1}))
		for _, at := range others {
			must(t, m.objects.PlSlots.Put(slot(toPlace(at), 0), toPlace(ends4[1])))
			must(t, m.objects.PlServices.Put(toPlace(at), objectsService{Count: 3}))
		}
	}
	write()
	const connections = 20000
	must(t, m.client.write.Encode(task{To: []netip.AddrPort{web4}, Again: connections - 1}))
	done := make(chan []met, 1)
	go func() {
		var all []met
		_ = m.client.read.Decode(&all)
		done <- all
	}()
	for rounds := 0; ; rounds++ {
		select {
		case all := <-done:
			wrong := 0
			for _, one := range all {
				if one.Server == ends4[1].String() {
					wrong++
				}
			}
			if wrong > 0 || len(all) != connections || rounds < connections {
				t.Errorf("%d of %d connections got to another Service's endpoint, in %d rounds", wrong, len(all), rounds)
			}
			return
		default:
			write()
		}
	}
}

// A frontend whose endpoints cannot be written is left to the rules, rather than to
// endpoints that are gone.
func TestWrite_fails(t *testing.T) {
	m := newMachine(t)
	m.set(web4, to(ends4[0]))
	m.hits(web4, 1)
	must(t, m.objects.PlSlots.Freeze())
	if err := m.Write([]proxy.Change{{Frontend: web4, Old: to(ends4[0]), New: to(ends4[1])}}); err == nil {
		t.Fatal("the map could be written")
	}
	if got := m.client.one(web4); got.Err != unix.ECONNREFUSED.Error() {
		t.Errorf("%+v, want it refused by what is no endpoint", got)
	}
	have, err := m.Read()
	must(t, err)
	if s := have[web4]; s == nil || !s.Torn {
		t.Errorf("read back: %v, want it torn", s)
	}
}

// empty says that nothing is left in the maps.
func (m *machine) empty() {
	m.t.Helper()
	have, err := m.Read()
	must(m.t, err)
	flows, err := ReadFlows(m.config.Dir)
	must(m.t, err)
	if len(have)+len(flows.Frontends)+len(flows.Endpoints) != 0 {
		m.t.Errorf("left in the maps: %v, %v", have, flows)
	}
}

// Connections to each endpoint are counted where a Service asks for it.
func TestFlows(t *testing.T) {
	m := newMachine(t)
	m.set(web4, &proxy.Service{Backends: ends4[:2], Count: true})
	hits := m.hits(web4, 100)
	check := func(when string) {
		t.Helper()
		flows, err := ReadFlows(m.config.Dir)
		must(t, err)
		for _, e := range ends4[:2] {
			if n := flows.Endpoints[[2]netip.AddrPort{web4, e}]; n != uint64(hits[e.String()]) {
				t.Errorf("%s: %d to %s, want %d", when, n, e, hits[e.String()])
			}
		}
	}
	check("first")
	m.set(web4, &proxy.Service{Backends: []netip.AddrPort{ends4[1], ends4[0], ends4[2]}, Count: true})
	check("in other slots")
	m.set(web4, &proxy.Service{Backends: []netip.AddrPort{ends4[1]}, Count: true})
	hits[ends4[0].String()] = 0
	check("one gone")
}
