package install

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cni"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/kernel/nft"
)

func TestMain(m *testing.M) { nettest.Main(m) }

func runtime(t *testing.T) Runtime {
	t.Helper()
	dir := t.TempDir()
	return Runtime{BinDir: filepath.Join(dir, "bin"), ConfDir: filepath.Join(dir, "net.d"), Socket: "/run/podlane/agent.sock", Log: slog.New(slog.DiscardHandler)}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// TestServe installs, repeats, mends what somebody removed, and removes its own
// alone.
func TestServe(t *testing.T) {
	r := runtime(t)
	for range 2 {
		if err := r.Serve(); err != nil {
			t.Fatal(err)
		}
	}
	if got := names(t, r.BinDir); !slices.Equal(got, []string{"loopback", "podlane-cni"}) {
		t.Error(got)
	}
	conflist := filepath.Join(r.ConfDir, cni.ConflistName)
	if text, err := os.ReadFile(conflist); err != nil || !strings.Contains(string(text), r.Socket) {
		t.Errorf("%s %v", text, err)
	}
	if err := os.Remove(filepath.Join(r.BinDir, cni.PluginName)); err != nil {
		t.Fatal(err)
	}
	if err := r.Serve(); err != nil || len(names(t, r.BinDir)) != 2 {
		t.Error("the plugin is not put back:", err)
	}
	for name, text := range map[string]string{"00-other.conflist": "{}", "10-other.conf": "{}", "notes.txt": ""} {
		if err := os.WriteFile(filepath.Join(r.ConfDir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if before, after := r.Others(); !slices.Equal(before, []string{"00-other.conflist"}) || !slices.Equal(after, []string{"10-other.conf"}) {
		t.Error(before, after)
	}
	if found := r.Leftovers(); len(found) < 2 || !strings.Contains(found[0], "00-other.conflist: it sorts before ours") || !strings.Contains(found[1], "10-other.conf") {
		t.Errorf("leftovers %q", found)
	}
	for range 2 {
		if err := r.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	if got := names(t, r.BinDir); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	if got := names(t, r.ConfDir); len(got) != 3 {
		t.Errorf("left: %v, want what was others'", got)
	}
}

// TestLeftovers names a link of another network while it is there.
func TestLeftovers(t *testing.T) {
	nettest.New(t)
	if found := runtime(t).Leftovers(); len(found) != 0 {
		t.Errorf("on an empty node: %q", found)
	}
	nettest.Run(t, "ip", "link", "add", "cni0", "type", "bridge")
	if found := runtime(t).Leftovers(); len(found) != 1 || !strings.Contains(found[0], "ip link delete cni0") {
		t.Errorf("%q", found)
	}
}

// TestServe_theirLoopback leaves a loopback plugin that was there alone.
func TestServe_theirLoopback(t *testing.T) {
	r := runtime(t)
	theirs := filepath.Join(r.BinDir, "loopback")
	if err := os.MkdirAll(r.BinDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(theirs, []byte("theirs"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := r.Serve(); err != nil {
		t.Fatal(err)
	}
	if err := r.Remove(); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(theirs); string(text) != "theirs" || err != nil {
		t.Errorf("%q %v", text, err)
	}
}

const kubeconfig = `{apiVersion: v1, kind: Config, current-context: a, contexts: [{name: a, context: {cluster: a, user: a}}],
clusters: [{name: a, cluster: {server: "https://192.0.2.1:6443"}}], users: [{name: a, user: {token: secret}}]}`

func TestFindServer(t *testing.T) {
	dir := t.TempDir()
	good, bad, none := filepath.Join(dir, "good"), filepath.Join(dir, "bad"), filepath.Join(dir, "none")
	for path, text := range map[string]string{good: kubeconfig, bad: "clusters: 7"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	host, port, _ := net.SplitHostPort(l.Addr().String())
	for _, c := range []struct {
		name, given string
		files       []string
		host, port  string
		url, err    string
	}{
		{name: "given", given: "https://198.51.100.1:6443", files: []string{good}, url: "https://198.51.100.1:6443"},
		{name: "given wrong", given: "198.51.100.1", err: "want https://HOST:PORT"},
		{name: "kubelet's", files: []string{none, bad, good}, url: "https://192.0.2.1:6443"},
		{name: "Service", files: []string{none}, host: host, port: port, url: "https://" + host + ":" + port},
		{name: "a folder for want of a file", files: []string{dir}, err: dir + ": the node has no such file"},
		{name: "Service does not answer", files: []string{bad}, host: "127.0.0.1", port: "1", err: "does not answer"},
		{name: "no file is given", err: "no kubeconfig of the kubelet is given"},
		{name: "nothing", files: []string{none}, err: none},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("KUBERNETES_SERVICE_HOST", c.host)
			t.Setenv("KUBERNETES_SERVICE_PORT", c.port)
			s, err := FindServer(c.given, c.files)
			if s.URL != c.url || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%+v %v", s, err)
			}
		})
	}
}

// TestCleanup makes what an agent makes, takes it off, and looks at the kernel.
func TestCleanup(t *testing.T) {
	nettest.New(t)
	dir := t.TempDir()
	r := runtime(t)
	c := Traces{Runtime: r, RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state"), FlowLimits: "limits.json", BPFDir: filepath.Join(dir, "bpf"),
		KubeletConfigs: []string{filepath.Join(dir, "kubernetes", "kubelet.conf"), filepath.Join(t.TempDir(), "kubelet.conf")}}
	if err := os.WriteFile(c.KubeletConfigs[1], []byte(kubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.Serve(); err != nil {
		t.Fatal(err)
	}
	nettest.Run(t, "ip", "link", "add", "theirs", "type", "veth", "peer", "name", "other")
	nettest.Run(t, "ip", "link", "set", "theirs", "up")
	h, err := link.Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	forward := "net/ipv4/conf/theirs/forwarding"
	have, err := h.Read(forward)
	if err != nil {
		t.Fatal(err)
	}
	want := link.NewState()
	want.Links["pl-vxlan"] = link.Link{Kind: link.VXLAN, MTU: 1450, MAC: link.MAC{2, 1}, VXLAN: link.VXLANSpec{ID: 1, Port: 8472, Device: "theirs", Local: netip.MustParseAddr("192.0.2.1")}}
	was := have.Sysctls[forward]
	changed := map[string]string{"0": "1", "1": "0"}[was]
	want.Sysctls[forward] = changed
	want.Sysctls["net/ipv4/conf/pl-vxlan/rp_filter"] = "2"
	former := NewFormer(c.StateDir)
	if err := former.Keep(have.Sysctls, want.Sysctls); err != nil {
		t.Fatal(err)
	}
	if err := h.Apply(link.Diff(have, want)); err != nil {
		t.Fatal(err)
	}
	// A second start finds its own value, and keeps the first one.
	again, _ := h.Read(forward)
	if err := NewFormer(c.StateDir).Keep(again.Sysctls, map[string]string{forward: was}); err != nil {
		t.Fatal(err)
	}
	conn, err := nft.Dial(0)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var tx nft.Tx
	tx.AddTable(nft.Table{Family: nft.IPv4, Name: nft.Prefix + "7"})
	if err := conn.Commit(&tx); err != nil {
		t.Fatal(err)
	}
	nettest.Run(t, "nft", "add", "table", "ip", "theirs")
	for _, made := range []string{filepath.Join(c.RunDir, "x"), c.KubeletConfigs[0]} {
		if err := os.MkdirAll(made, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c.Chains = func() error { return errors.New("no iptables") }
	if err := Cleanup(t.Context(), c, slog.New(slog.DiscardHandler)); err == nil || len(names(t, c.StateDir)) == 0 {
		t.Errorf("%v, and what another try needs is gone", err)
	}
	c.Chains = func() error { return nil }
	for range 2 {
		if err := Cleanup(t.Context(), c, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
	}
	if files := names(t, filepath.Dir(c.KubeletConfigs[1])); !slices.Equal(files, []string{"kubelet.conf"}) {
		t.Errorf("the kubelet had kubelet.conf, and has %v", files)
	}
	if tables := nettest.Run(t, "nft", "list", "tables"); strings.TrimSpace(tables) != "table ip theirs" {
		t.Error(tables)
	}
	if links := nettest.Run(t, "ip", "-o", "link"); strings.Contains(links, "pl-vxlan") || !strings.Contains(links, "theirs") {
		t.Error(links)
	}
	if now, err := h.Read(forward); err != nil || now.Sysctls[forward] != was {
		t.Errorf("%s is %v, was %s (%v)", forward, now.Sysctls, was, err)
	}
	if left := names(t, dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestRemoveKubeletConfigs_inPod: the parent is a mount there, in a root that is
// read-only.
func TestRemoveKubeletConfigs_inPod(t *testing.T) {
	nettest.New(t) // a thread of its own
	root := t.TempDir()
	config := filepath.Join(root, "kubelet", "kubelet.conf")
	t.Cleanup(func() { _, _ = unix.Unmount(filepath.Dir(config), 0), unix.Unmount(root, 0) })
	if err := errors.Join(unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""),
		unix.Mount("tmpfs", root, "tmpfs", 0, ""), os.Mkdir(filepath.Dir(config), 0o755),
		unix.Mount("tmpfs", filepath.Dir(config), "tmpfs", 0, ""), os.Mkdir(config, 0o755), unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")); err != nil {
		t.Fatal(err)
	}
	if err := (Traces{KubeletConfigs: []string{config}}).removeKubeletConfigs(); err != nil || len(names(t, filepath.Dir(config))) != 0 {
		t.Errorf("%v, left: %v", err, names(t, filepath.Dir(config)))
	}
}

// TestCleanup_agentRuns refuses while an agent would bring all back.
func TestCleanup_agentRuns(t *testing.T) {
	nettest.New(t)
	dir := t.TempDir()
	c := Traces{Runtime: runtime(t), RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state")}
	unlock, err := alone(c.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	if err := os.Mkdir(c.RunDir, 0o755); err != nil {
		t.Fatal(err)
	}
	server, err := cni.Listen(filepath.Join(c.RunDir, "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server }()
	if err := Cleanup(t.Context(), c, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "an agent is running") {
		t.Errorf("%v", err)
	}
}

// TestCleanup_toldFolders: what is left alone since no folder is given is not said to
// be removed.
func TestCleanup_toldFolders(t *testing.T) {
	nettest.New(t)
	dir := t.TempDir()
	var log bytes.Buffer
	r := runtime(t)
	r.ConfDir = ""
	c := Traces{Runtime: r, RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state"), FlowLimits: "limits.json"}
	if err := Cleanup(t.Context(), c, slog.New(slog.NewTextHandler(&log, nil))); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(log.String()) {
		if left := strings.Contains(line, "CNI") || strings.Contains(line, "fast path") || strings.Contains(line, "iptables"); left != strings.Contains(line, "left as it is") {
			t.Error(line)
		}
	}
}
