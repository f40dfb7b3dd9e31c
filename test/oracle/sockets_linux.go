package oracle

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/bpf/socket"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/proxy"
	"github.com/podlane/podlane/proxy/ebpf"
	"github.com/podlane/podlane/test/oracle/history"
	"github.com/podlane/podlane/test/oracle/packet"
	"github.com/podlane/podlane/test/oracle/world"
)

// SocketLB has Podlane translate Services at the sockets of pods, over its nftables
// rules. It needs root.
var SocketLB bool

// sockets is that translation. Where a pod's TCP connection goes is asked of a real
// socket, in a process of its own in a cgroup of its own; the first packet is then
// shot to there.
type sockets struct {
	dir, cgroup string // a BPF file system, a cgroup
	handle      *socket.Handle
	have        *ebpf.Applied
	client      *exec.Cmd
	in          io.Closer
	write       *json.Encoder
	read        *json.Decoder
	cookie      uint64
	sent        map[connection]netip.AddrPort
	translated  int
}

// connection is one of a known source port.
type connection struct {
	source netip.Addr
	port   uint16
	to     netip.AddrPort
}

func newSockets() (s *sockets, err error) {
	s = &sockets{sent: map[connection]netip.AddrPort{}}
	if s.dir, err = os.MkdirTemp("", "oracle-bpf-"); err != nil {
		return nil, err
	}
	if err := unix.Mount("bpf", s.dir, "bpf", 0, "mode=0700"); err != nil {
		return nil, errors.Join(fmt.Errorf("mount a BPF file system: %w", err), os.Remove(s.dir))
	}
	root := "/sys/fs/cgroup/unified"
	if _, err := os.Stat(root); err != nil {
		root = "/sys/fs/cgroup"
	}
	if s.cgroup, err = os.MkdirTemp(root, "podlane-oracle-"); err == nil {
		err = s.start()
	}
	if err != nil {
		s.end()
		return nil, err
	}
	return s, nil
}

// start starts the client.
func (s *sockets) start() error {
	dir, err := os.Open(s.cgroup)
	if err != nil {
		return err
	}
	defer dir.Close()
	s.client = exec.Command("/proc/self/exe")
	s.client.Env = append(os.Environ(), socketClient+"=1")
	s.client.Stderr = os.Stderr
	s.client.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	in, err1 := s.client.StdinPipe()
	out, err2 := s.client.StdoutPipe()
	if err := errors.Join(err1, err2, s.client.Start()); err != nil {
		return err
	}
	s.in, s.write, s.read = in, json.NewEncoder(in), json.NewDecoder(bufio.NewReader(out))
	return s.read.Decode(&s.cookie)
}

// end leaves nothing.
func (s *sockets) end() {
	if s.handle != nil {
		s.handle.Close()
	}
	if s.in != nil {
		_ = s.in.Close()
		_ = s.client.Wait()
	}
	_ = socket.Remove(filepath.Join(s.dir, "node"))
	_ = unix.Unmount(s.dir, unix.MNT_DETACH)
	_ = os.Remove(s.dir)
	for range 100 { // processes leave a cgroup a moment after their end
		if s.cgroup == "" || unix.Rmdir(s.cgroup) == nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// open is a start of the agent.
func (s *sockets) open() (err error) {
	if s.handle != nil {
		s.handle.Close()
	}
	s.have = nil
	if s.handle, err = socket.Open(socket.Config{Dir: filepath.Join(s.dir, "node"), Cgroup: s.cgroup}); err != nil {
		return err
	}
	return s.handle.SetClients(map[uint64]bool{s.cookie: true})
}

// apply brings the maps to a Table, as the agent does.
func (s *sockets) apply(w *world.World, t *proxy.Table) error {
	var own []netip.Addr
	err := w.Do(func() error {
		all, err := net.InterfaceAddrs()
		for _, a := range all {
			if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLoopback() {
				own = append(own, p.Addr().Unmap())
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	if s.have == nil {
		have, err := s.handle.Read()
		if err != nil {
			return err
		}
		s.have = ebpf.Adopt(have)
	}
	next, changes := ebpf.Diff(s.have, t, own)
	s.have = next
	if err := s.handle.Write(changes); err != nil {
		return err
	}
	_, err = s.handle.Attach()
	return err
}

// finish says whether the maps have what they are believed to have.
func (s *sockets) finish() error {
	have, err := s.handle.Read()
	if err != nil {
		return err
	}
	wrong := len(have) != s.have.Len()
	s.have.Each(func(at ebpf.Frontend, want *ebpf.Service) {
		of := have[at]
		wrong = wrong || of == nil || of.Torn || !slices.Equal(of.Backends, want.Backends)
	})
	if wrong {
		return fmt.Errorf("the maps have %v, which is not what is believed", have)
	}
	return nil
}

// aim gives the shots as they leave the pods. A pod that may be an endpoint may be
// given itself; its packet would not leave it, so it is left to the rules.
func (s *sockets) aim(shots []world.Shot) ([]world.Shot, error) {
	out := slices.Clone(shots)
	var asked []netip.AddrPort
	var of []int
	for i, shot := range out {
		switch {
		case shot.From != world.Pods || shot.Protocol != cluster.TCP || slices.Contains(history.EndpointPods(shot.Source.Is6()), shot.Source):
		case shot.Flags == 0:
			asked, of = append(asked, shot.To), append(of, i)
		case shot.Flags == packet.ACK:
			if to, ok := s.sent[connection{shot.Source, shot.Port, shot.To}]; ok {
				out[i].To = to
			}
		}
	}
	if len(asked) == 0 {
		return out, nil
	}
	var answers []netip.AddrPort
	if err := errors.Join(s.write.Encode(asked), s.read.Decode(&answers)); err != nil {
		return nil, fmt.Errorf("the sockets' process: %w", err)
	}
	for k, i := range of {
		if answers[k] != shots[i].To {
			s.translated++
		}
		out[i].To = answers[k]
		if shots[i].Port != 0 {
			s.sent[connection{shots[i].Source, shots[i].Port, shots[i].To}] = answers[k]
		}
	}
	return out, nil
}

// socketClient makes the test binary that process.
const socketClient = "PODLANE_ORACLE_SOCKETS"

// ServeSockets is that process: for each list of destinations on standard input it
// answers where TCP sockets that connect to them really send. It gives false where
// this is another process.
func ServeSockets() bool {
	if os.Getenv(socketClient) == "" {
		return false
	}
	if err := serveSockets(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return true
}

func serveSockets(in io.Reader, out io.Writer) error {
	wire, err := openWire()
	if err != nil {
		return err
	}
	cookie, err := link.NetnsCookie(wire)
	if err != nil {
		return err
	}
	write, read := json.NewEncoder(out), json.NewDecoder(bufio.NewReader(in))
	if err := write.Encode(cookie); err != nil {
		return err
	}
	for {
		var asked []netip.AddrPort
		if err := read.Decode(&asked); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		for i, to := range asked {
			if asked[i], err = connect(wire, to); err != nil {
				return fmt.Errorf("connect to %s: %w", to, err)
			}
		}
		if err := write.Encode(asked); err != nil {
			return err
		}
	}
}

// openWire makes a link that all routes lead to, and a socket that sees what is
// sent there.
func openWire() (int, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "wire"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "far"}); err != nil {
		return 0, err
	}
	near, err1 := netlink.LinkByName("wire")
	far, err2 := netlink.LinkByName("far")
	if err := errors.Join(err1, err2); err != nil {
		return 0, err
	}
	for _, l := range []netlink.Link{near, far} {
		if err := errors.Join(netlink.LinkSetARPOff(l), netlink.LinkSetUp(l)); err != nil {
			return 0, err
		}
	}
	for _, a := range []string{"198.18.9.1/32", "fd00:198:9::1/128"} {
		p := netip.MustParsePrefix(a)
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Bits())}, Flags: unix.IFA_F_NODAD}
		all := &net.IPNet{IP: make(net.IP, p.Bits()/8), Mask: net.CIDRMask(0, p.Bits())}
		if err := errors.Join(netlink.AddrAdd(near, addr), netlink.RouteAdd(&netlink.Route{LinkIndex: near.Attrs().Index, Dst: all})); err != nil {
			return 0, fmt.Errorf("%s: %w", a, err)
		}
	}
	all := uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(all))
	if err != nil {
		return 0, err
	}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
	return fd, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: near.Attrs().Index})
}

// connect gives where the first packet of a connection goes.
func connect(wire int, to netip.AddrPort) (netip.AddrPort, error) {
	family, sa := unix.AF_INET, unix.Sockaddr(nil)
	if to.Addr().Is6() {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}
	} else {
		sa = &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return to, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sa); !errors.Is(err, unix.EINPROGRESS) {
		return to, err
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return to, err
	}
	for buf := make([]byte, 2048); ; {
		n, _, err := unix.Recvfrom(wire, buf, 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return to, err
		}
		if dst, ok := destination(buf[:max(n, 0)], local); ok {
			return dst, nil
		}
	}
}

// destination reads that of a SYN from a local address.
func destination(b []byte, local unix.Sockaddr) (netip.AddrPort, bool) {
	header, at, size := 20, 16, 4
	port := 0
	switch l := local.(type) {
	case *unix.SockaddrInet4:
		port = l.Port
	case *unix.SockaddrInet6:
		port, header, at, size = l.Port, 40, 24, 16
	}
	if len(b) < header+20 || (b[0]>>4 == 4) != (size == 4) {
		return netip.AddrPort{}, false
	}
	tcp := b[header:]
	addr, _ := netip.AddrFromSlice(b[at : at+size])
	return netip.AddrPortFrom(addr, uint16(tcp[2])<<8|uint16(tcp[3])), int(tcp[0])<<8|int(tcp[1]) == port && tcp[13] == packet.SYN
}
