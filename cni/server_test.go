package cni

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cni/shim"
)

// echo serves until the test ends and answers every request with its verb.
func echo(t *testing.T, path string) {
	t.Helper()
	s, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(ctx)
	}()
	go func() {
		for {
			select {
			case r := <-s.Requests():
				text, _ := json.Marshal(r.Verb)
				r.Reply(shim.Reply{Result: text})
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
}

func TestServer_socket(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 40)) // more than a socket address holds
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "agent.sock")
	if err := os.WriteFile(path, []byte("stale"), 0o644); err != nil {
		t.Fatal(err)
	}
	echo(t, path)
	info, err := os.Stat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%v %v, want a socket of mode 0600", info.Mode(), err)
	}
	reply, err := shim.Ask(path, shim.Request{Verb: "status"}, 5*time.Second)
	if err != nil || string(reply.Result) != `"status"` {
		t.Errorf("%s %v", reply.Result, err)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "another podlane agent is running") {
		t.Errorf("a second agent: %v", err)
	}
	if reply, err := shim.Ask(path, shim.Request{Verb: "status"}, 5*time.Second); err != nil || reply.Error != nil {
		t.Errorf("after the second agent: %v %v", reply.Error, err)
	}
}

func TestServer_goesAndComesBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	t.Run("first", func(t *testing.T) { echo(t, path) })
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is left behind: %v", err)
	}
	if _, err := shim.Ask(path, shim.Request{}, time.Second); err == nil {
		t.Error("an answer, and nobody there")
	}
	echo(t, path)
	if _, err := shim.Ask(path, shim.Request{}, 5*time.Second); err != nil {
		t.Error(err)
	}
}

// TestServer_garbage sends what no shim sends. Each gets an error, and the next
// request an answer.
func TestServer_garbage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	echo(t, path)
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fd := int(file.Fd())
	for _, c := range []struct {
		name, text, want string
		fds              []int
	}{
		{"nothing", "", "request: EOF", nil},
		{"no JSON", "GET / HTTP/1.1\r\n\r\n", "invalid character", nil},
		{"newer", `{"version":7}`, "version 7", nil},
		{"too long", strings.Repeat(" ", shim.MaxDocument+40000) + `{"version":1}`, "", nil},
		{"one descriptor", `{"version":1}`, "1 descriptors", []int{fd}},
		{"no namespace", `{"version":1}`, "no network namespace", []int{fd, fd}},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := exchange(t, path, c.text, c.fds)
			var reply shim.Reply
			err := json.Unmarshal([]byte(text), &reply)
			if c.want == "" && text == "" {
				return // the server closed before it had read it all: so be it
			}
			if err != nil || reply.Error == nil || !strings.Contains(reply.Error.Msg, c.want) {
				t.Errorf("%s %v, want an error with %q", text, err, c.want)
			}
		})
	}
	if _, err := shim.Ask(path, shim.Request{Verb: "status"}, 5*time.Second); err != nil {
		t.Error(err)
	}
}

// exchange writes text and descriptors and reads to the end.
func exchange(t *testing.T, path, text string, fds []int) string {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if len(fds) > 0 {
		_, _, err = conn.WriteMsgUnix([]byte(text), rights(fds), nil)
	} else {
		_, err = conn.Write([]byte(text))
	}
	if err == nil {
		err = conn.CloseWrite()
	}
	if err != nil {
		return "" // the server may close a long request early
	}
	return readAll(conn)
}

func rights(fds []int) []byte { return unix.UnixRights(fds...) }

func readAll(conn *net.UnixConn) string {
	text, _ := io.ReadAll(conn)
	return string(text)
}
