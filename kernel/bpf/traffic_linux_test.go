package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/podlane/podlane/internal/nettest"
)

var payload = bytes.Repeat([]byte("podlane "), 128<<10) // 1 MiB

// serve answers TCP and UDP on port 7777 of all addresses in ns with what it
// gets, until the test ends.
func serve(t testing.TB, ns netns.NsHandle) {
	t.Helper()
	nettest.Do(t, ns, func() {
		l, err := net.Listen("tcp", ":7777")
		if err != nil {
			t.Fatal(err)
		}
		u, err := net.ListenPacket("udp", ":7777")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close(); _ = u.Close() })
		go acceptLoop(l)
		go datagramLoop(u)
	})
}

func acceptLoop(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
	}
}

func datagramLoop(u net.PacketConn) {
	b := make([]byte, 64<<10)
	for {
		n, from, err := u.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = u.WriteTo(b[:n], from)
		}
	}
}

// dial connects on the calling goroutine's thread: for one literal address
// package net starts no other for it.
func dial(network string, local netip.AddrPort, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{Timeout: 3 * time.Second, Control: reuse}
	if local.IsValid() {
		d.LocalAddr = net.Addr(net.TCPAddrFromAddrPort(local))
		if network == "udp" {
			d.LocalAddr = net.UDPAddrFromAddrPort(local)
		}
	}
	c, err := d.Dial(network, to.String())
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	}
	return c, err
}

func reuse(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1) })
}

// echo sends the bytes and demands them back.
func echo(c net.Conn, b []byte) error {
	wrote := make(chan error, 1)
	go func() { _, err := c.Write(b); wrote <- err }()
	got := make([]byte, len(b))
	if _, isUDP := c.(*net.UDPConn); isUDP {
		if _, err := c.Read(got); err != nil {
			return err
		}
	} else if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if err := <-wrote; err != nil {
		return err
	}
	if !bytes.Equal(got, b) {
		return errors.New("other bytes came back")
	}
	return nil
}

// talk has a client in ns reach port 7777 of a by TCP, with 1 MiB there and back,
// and by UDP.
func talk(t testing.TB, what string, ns netns.NsHandle, a netip.Addr) {
	t.Helper()
	talkTo(t, what, ns, netip.AddrPortFrom(a, 7777), "tcp", payload)
	talkTo(t, what, ns, netip.AddrPortFrom(a, 7777), "udp", payload[:1200])
}

func talkTo(t testing.TB, what string, ns netns.NsHandle, to netip.AddrPort, network string, b []byte) {
	t.Helper()
	nettest.Do(t, ns, func() {
		if err := once(network, to, b); err != nil {
			t.Errorf("%s: %s %s: %v", what, network, to, err)
		}
	})
}

func once(network string, to netip.AddrPort, b []byte) error {
	c, err := dial(network, netip.AddrPort{}, to)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := echo(c, b); err != nil {
		return fmt.Errorf("from %s: %w", c.LocalAddr(), err)
	}
	return nil
}
