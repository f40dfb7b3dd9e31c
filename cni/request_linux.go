package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cni/shim"
)

// Request is one client's request, to be answered with Reply by the one
// goroutine that receives it.
type Request struct {
	shim.Request
	// NetnsFD and SocketFD are descriptors of the pod's network namespace and of a
	// route netlink socket in it, or -1. They are open until Reply is called.
	NetnsFD, SocketFD int
	// Deadline is when the client stops waiting.
	Deadline time.Time
	reply    chan shim.Reply
}

// Reply answers the request. Only the first call counts; it does not block.
func (r *Request) Reply(reply shim.Reply) {
	select {
	case r.reply <- reply:
	default:
	}
}

// close closes the descriptors.
func (r *Request) close() {
	for _, fd := range []int{r.NetnsFD, r.SocketFD} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// readRequest reads a document and the descriptors that came with its first
// byte. A request comes back with an error too where it has descriptors to close.
func readRequest(conn *net.UnixConn) (*Request, error) {
	if err := conn.SetReadDeadline(time.Now().Add(readTimeout)); err != nil {
		return nil, err
	}
	first := make([]byte, 32<<10)
	rights := make([]byte, unix.CmsgSpace(2*4))
	n, m, _, _, err := conn.ReadMsgUnix(first, rights)
	if err != nil {
		return nil, cause(err)
	}
	req := &Request{NetnsFD: -1, SocketFD: -1, reply: make(chan shim.Reply, 1)}
	if err := req.take(rights[:m]); err != nil {
		return req, err
	}
	rest, err := io.ReadAll(io.LimitReader(conn, shim.MaxDocument))
	if err != nil {
		return req, cause(err)
	}
	if err := json.Unmarshal(append(first[:n], rest...), &req.Request); err != nil {
		return req, fmt.Errorf("request: %w", err)
	}
	if req.Version != shim.Version {
		return req, fmt.Errorf("request of version %d, want %d", req.Version, shim.Version)
	}
	wait := time.Duration(req.TimeoutMS) * time.Millisecond
	if wait <= 0 {
		wait = defaultWait
	}
	req.Deadline = time.Now().Add(wait)
	return req, nil
}

// take assigns the descriptors of a control message and refuses what they should
// not be.
func (r *Request) take(rights []byte) error {
	fds, err := descriptors(rights)
	if len(fds) > 0 {
		r.NetnsFD = fds[0]
	}
	if len(fds) > 1 {
		r.SocketFD = fds[1]
	}
	if err != nil || len(fds) == 0 {
		return err
	}
	if len(fds) != 2 {
		return fmt.Errorf("%d descriptors, want a network namespace and a netlink socket", len(fds))
	}
	if kind, err := unix.IoctlRetInt(r.NetnsFD, unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		return errors.New("the first descriptor is no network namespace")
	}
	domain, err1 := unix.GetsockoptInt(r.SocketFD, unix.SOL_SOCKET, unix.SO_DOMAIN)
	protocol, err2 := unix.GetsockoptInt(r.SocketFD, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err1 != nil || err2 != nil || domain != unix.AF_NETLINK || protocol != unix.NETLINK_ROUTE {
		return errors.New("the second descriptor is no route netlink socket")
	}
	return nil
}

func descriptors(rights []byte) (fds []int, err error) {
	if len(rights) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil, fmt.Errorf("descriptors: %w", err)
	}
	for _, m := range messages {
		some, err := unix.ParseUnixRights(&m)
		if err != nil {
			return fds, fmt.Errorf("descriptors: %w", err)
		}
		fds = append(fds, some...)
	}
	return fds, nil
}

// cause is an error without package net's words for the socket's address, which
// is one that nobody knows (see listen).
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	return fmt.Errorf("request: %w", err)
}
