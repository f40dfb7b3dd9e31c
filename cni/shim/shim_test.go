package shim

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/internal/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// run runs the plugin and gives what it printed and its exit status.
func run(t *testing.T, env map[string]string, stdin string) (map[string]any, int) {
	t.Helper()
	var out, errs bytes.Buffer
	status := Main(func(name string) string { return env[name] }, strings.NewReader(stdin), &out, &errs)
	if errs.Len() > 0 {
		t.Log("stderr:", errs.String())
	}
	var document map[string]any
	if out.Len() > 0 {
		if err := json.Unmarshal(out.Bytes(), &document); err != nil {
			t.Fatalf("%q is no JSON: %v", out.String(), err)
		}
	}
	return document, status
}

func env(command string, more ...string) map[string]string {
	m := map[string]string{"CNI_COMMAND": command, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin"}
	for i := 0; i < len(more); i += 2 {
		m[more[i]] = more[i+1]
	}
	return m
}

func conf(socket string) string {
	return `{"cniVersion":"1.1.0","name":"podlane","type":"podlane-cni","socket":"` + socket + `"}`
}

func TestMain_version(t *testing.T) {
	have, status := run(t, env("VERSION"), "")
	text, _ := json.Marshal(have["supportedVersions"])
	if status != 0 || have["cniVersion"] != "1.1.0" || string(text) != `["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]` {
		t.Errorf("%d %v", status, have)
	}
}

func TestMain_notARuntime(t *testing.T) {
	if have, status := run(t, nil, ""); status != 1 || have != nil {
		t.Errorf("%d %v", status, have)
	}
}

// TestMain_badRequest has each mistake named with the specification's code.
func TestMain_badRequest(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none.sock")
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, stdin string
		env         map[string]string
		code        float64
		want        string
	}{
		{"unknown command", conf(none), env("MOVE"), 4, "MOVE"},
		{"no container", conf(none), env("DEL", "CNI_CONTAINERID", ""), 4, "CNI_CONTAINERID"},
		{"nothing set", conf(none), env("ADD", "CNI_CONTAINERID", "", "CNI_IFNAME", ""), 4, "CNI_CONTAINERID CNI_IFNAME CNI_NETNS"},
		{"no configuration", "", env("ADD", "CNI_NETNS", "/x"), 6, "network configuration"},
		{"no name", `{"cniVersion":"1.0.0"}`, env("STATUS"), 7, "name"},
		{"no such namespace", conf(none), env("ADD", "CNI_NETNS", "/no/such"), 4, "/no/such"},
		{"a pipe", conf(none), env("ADD", "CNI_NETNS", fifo), 4, "setns"},
		{"own namespace", conf(none), env("CHECK", "CNI_NETNS", "/proc/self/ns/net"), 4, "the namespace of the plugin itself"},
	} {
		t.Run(c.name, func(t *testing.T) {
			have, status := run(t, c.env, c.stdin)
			text, _ := json.Marshal(have)
			if status != 1 || have["code"] != c.code || !strings.Contains(string(text), c.want) {
				t.Errorf("%d %s, want code %v and %q", status, text, c.code, c.want)
			}
		})
	}
}

func TestMain_agentAway(t *testing.T) {
	pod := namespacePath(t)
	stale := filepath.Join(t.TempDir(), "stale.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	for _, socket := range []string{filepath.Join(t.TempDir(), "none.sock"), stale} {
		for command, code := range map[string]float64{"ADD": 11, "CHECK": 11, "GC": 11, "STATUS": 50} {
			have, status := run(t, env(command, "CNI_NETNS", pod), conf(socket))
			if status != 1 || have["code"] != code || have["cniVersion"] != "1.1.0" || !strings.Contains(have["details"].(string), socket) {
				t.Errorf("%s: %d %v, want code %v", command, status, have, code)
			}
		}
		if have, status := run(t, env("DEL", "CNI_NETNS", pod), conf(socket)); status != 0 || have != nil {
			t.Errorf("DEL: %d %v, want success", status, have)
		}
	}
}

// namespacePath gives a network namespace that is not the caller's.
func namespacePath(t *testing.T) string {
	t.Helper()
	nettest.New(t)
	ns := nettest.Make(t)
	return "/proc/self/fd/" + strconv.Itoa(int(ns))
}

// TestMain_descriptors is an agent that looks at what it gets.
func TestMain_descriptors(t *testing.T) {
	nettest.New(t)
	pod := nettest.Make(t)
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type seen struct {
		request Request
		fds     []int
	}
	got := make(chan seen, 1)
	go func() {
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		defer conn.Close()
		text, oob := make([]byte, 64<<10), make([]byte, 64)
		n, m, _, _, _ := conn.ReadMsgUnix(text, oob)
		var s seen
		_ = json.Unmarshal(text[:n], &s.request)
		if messages, err := unix.ParseSocketControlMessage(oob[:m]); err == nil && len(messages) == 1 {
			s.fds, _ = unix.ParseUnixRights(&messages[0])
		}
		_, _ = io.ReadAll(conn)
		_, _ = conn.Write([]byte(`{"version":1,"result":{"cniVersion":"1.1.0","ips":[]}}`))
		got <- s
	}()
	before := ownNamespace(t)
	nsPath := "/proc/self/fd/" + strconv.Itoa(int(pod))
	have, status := run(t, env("ADD", "CNI_NETNS", nsPath, "CNI_ARGS", "K8S_POD_NAME=web-0"), conf(path))
	if status != 0 || have["cniVersion"] != "1.1.0" {
		t.Fatalf("%d %v", status, have)
	}
	if after := ownNamespace(t); after != before {
		t.Errorf("the thread is in %v and was in %v", after, before)
	}
	s := <-got
	r := s.request
	if r.Version != 1 || r.Verb != VerbCNI || r.Command != "ADD" || r.ContainerID != "c1" || r.IfName != "eth0" ||
		r.Netns != nsPath || r.Args != "K8S_POD_NAME=web-0" || r.TimeoutMS != 30000 || string(r.Config) != conf(path) {
		t.Errorf("request %+v", r)
	}
	if len(s.fds) != 2 {
		t.Fatalf("%d descriptors", len(s.fds))
	}
	defer unix.Close(s.fds[0])
	defer unix.Close(s.fds[1])
	var want, ns unix.Stat_t
	if err := unix.Fstat(int(pod), &want); err != nil || unix.Fstat(s.fds[0], &ns) != nil || want.Ino != ns.Ino {
		t.Errorf("namespace %d, want %d (%v)", ns.Ino, want.Ino, err)
	}
	// SIOCGSKNS gives the namespace that a socket was opened in.
	of, err := unix.IoctlRetInt(s.fds[1], unix.SIOCGSKNS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(of)
	if unix.Fstat(of, &ns) != nil || want.Ino != ns.Ino {
		t.Errorf("the socket is of namespace %d, want %d", ns.Ino, want.Ino)
	}
}

func ownNamespace(t *testing.T) uint64 {
	t.Helper()
	var s unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &s); err != nil {
		t.Fatal(err)
	}
	return s.Ino
}

// silent is an agent that accepts and says nothing.
func silent(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return path
}

func TestAsk_silence(t *testing.T) {
	path := silent(t)
	start := time.Now()
	_, err := Ask(path, Request{Verb: "status"}, 200*time.Millisecond)
	if took := time.Since(start); err == nil || !os.IsTimeout(err) || took > 2*time.Second {
		t.Errorf("%v after %v, want a timeout", err, took)
	}
}

func TestAsk_badReply(t *testing.T) {
	for reply, want := range map[string]string{
		"": "without a reply", "no JSON": "reply of 7 bytes", `{"version":2}`: "version 2",
		strings.Repeat(" ", MaxDocument+1): "longer than",
	} {
		path := filepath.Join(t.TempDir(), "agent.sock")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.ReadAll(conn)
			_, _ = io.WriteString(conn, reply)
			_ = conn.Close()
		}()
		if _, err := Ask(path, Request{}, 5*time.Second); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		_ = l.Close()
	}
}

// TestBounded has standard input that never ends: the plugin does.
func TestBounded(t *testing.T) {
	r, w := io.Pipe()
	defer w.Close()
	var out bytes.Buffer
	c := &call{getenv: func(name string) string { return env("ADD")[name] }}
	if status := bounded(c, r, &out, 100*time.Millisecond); status != 1 || !strings.Contains(out.String(), `"code":11`) {
		t.Errorf("%d %s", status, out.String())
	}
}
