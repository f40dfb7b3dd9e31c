package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cni/shim"
)

// The bounds of the socket. A client that has been accepted and says nothing
// costs one connection for readTimeout.
const (
	maxConnections = 256
	readTimeout    = 10 * time.Second
	writeTimeout   = 10 * time.Second
	defaultWait    = 30 * time.Second // of a client that does not say how long it waits
	maxBatch       = 64
)

// Server is the agent's socket: it reads requests and hands them, whole, to who
// receives from Requests. It decides nothing about them.
type Server struct {
	path     string
	listener *net.UnixListener
	lock     *os.File
	requests chan *Request
}

// Listen makes the socket with mode 0600, in the place of one that an agent left
// behind. It is an error when another agent runs with the same folder, which a
// lock on the folder tells.
func Listen(path string) (*Server, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("agent socket: %w", err)
	}
	lock, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("agent socket: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("agent socket %s: another podlane agent is running with this folder", path)
		}
		return nil, fmt.Errorf("agent socket: lock %s: %w", dir, err)
	}
	l, err := listen(lock, path)
	if err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("agent socket %s: %w", path, err)
	}
	return &Server{path: path, listener: l, lock: lock, requests: make(chan *Request)}, nil
}

// listen binds under another name and renames, so that clients see a socket that
// is ready or the old one. The address goes by way of the folder's descriptor,
// since a socket address holds 108 bytes and a path may be longer.
func listen(dir *os.File, path string) (*net.UnixListener, error) {
	name := filepath.Base(path) + ".new"
	fresh := filepath.Join(filepath.Dir(path), name)
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	// The kernel gives the file the mode that the socket has before it is bound.
	private := func(_, _ string, c syscall.RawConn) (err error) {
		return errors.Join(c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }), err)
	}
	config := net.ListenConfig{Control: private}
	l, err := config.Listen(context.Background(), "unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name))
	if err != nil {
		return nil, err
	}
	unixListener := l.(*net.UnixListener)
	unixListener.SetUnlinkOnClose(false)
	if err := os.Rename(fresh, path); err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(fresh))
	}
	return unixListener, nil
}

// Requests gives the requests as they come. Nobody but the agent's loop may
// receive from it.
func (s *Server) Requests() <-chan *Request { return s.requests }

// Batch gives the request together with those that are waiting, so that many
// pods that start at once share the cost of one apply.
func (s *Server) Batch(first *Request) []*Request {
	batch := []*Request{first}
	for len(batch) < maxBatch {
		select {
		case r := <-s.requests:
			batch = append(batch, r)
		default:
			return batch
		}
	}
	return batch
}

// Serve accepts until ctx ends, then removes the socket. Every connection has a
// goroutine of its own (serveOne) until its reply is written.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.listener.Close() })
	defer stop()
	defer s.lock.Close()
	defer os.Remove(s.path)
	slots := make(chan struct{}, maxConnections)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := s.listener.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ECONNABORTED):
			time.Sleep(50 * time.Millisecond)
			<-slots
		case err != nil:
			return fmt.Errorf("agent socket %s: %w", s.path, err)
		default:
			go func() {
				defer func() { <-slots }()
				s.serveOne(ctx, conn)
			}()
		}
	}
}

// serveOne reads one request, hands it over, and writes its reply.
func (s *Server) serveOne(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	req, err := readRequest(conn)
	if req != nil {
		defer req.close()
	}
	if err != nil {
		writeReply(conn, shim.Reply{Error: &shim.Error{Code: shim.CodeDecode, Msg: "agent socket: " + err.Error()}})
		return
	}
	away := shim.Reply{Error: &shim.Error{Code: shim.CodeTryAgain, Msg: "the podlane agent is stopping"}}
	select {
	case s.requests <- req:
	case <-ctx.Done():
		writeReply(conn, away)
		return
	}
	// From here on the loop has the descriptors: they may not be closed before it
	// answers, or before the process ends.
	writeReply(conn, <-req.reply)
}

func writeReply(conn *net.UnixConn, reply shim.Reply) {
	reply.Version = shim.Version
	text, err := json.Marshal(reply)
	if err != nil {
		return
	}
	_ = conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	// The client may be gone; the runtime then deletes what it does not know of.
	_, _ = conn.Write(text)
}
