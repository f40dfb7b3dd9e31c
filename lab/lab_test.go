package lab_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// user is who runs the program under test: the tests' caller, and with root an
// ordinary user too.
type user struct {
	name string
	cred *syscall.Credential
}

const nobody = 65534

func users() []user {
	if os.Getuid() != 0 {
		return []user{{name: "user"}}
	}
	return []user{{name: "root"}, {name: "user", cred: &syscall.Credential{Uid: nobody, Gid: nobody}}}
}

func (u user) uid() int {
	if u.cred != nil {
		return int(u.cred.Uid)
	}
	return os.Getuid()
}

// dir is where labs of the user are: the program runs without XDG_RUNTIME_DIR.
func (u user) dir(name string) string {
	return filepath.Join(os.TempDir(), "podlane-"+strconv.Itoa(u.uid()), "lab", name)
}

// command makes a start of the program as the user.
func (u user) command(t testing.TB, args ...string) *exec.Cmd {
	cmd := exec.Command(program(t), args...)
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR=")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: u.cred}
	return cmd
}

var (
	built     sync.Once
	builtPath string
	errBuilt  error
)

// program builds podlane once, where every user may run it. A program that was
// built before may be named by PODLANE_TEST_PROGRAM.
func program(t testing.TB) string {
	t.Helper()
	if given := os.Getenv("PODLANE_TEST_PROGRAM"); given != "" {
		return given
	}
	built.Do(func() {
		readSources()
		dir, err := os.MkdirTemp("", "podlane-lab-test-")
		if err != nil {
			errBuilt = err
			return
		}
		builtPath = filepath.Join(dir, "podlane")
		build := exec.Command("go", "build", "-o", builtPath, "github.com/podlane/podlane/cmd/podlane")
		if out, err := build.CombinedOutput(); err != nil {
			errBuilt = fmt.Errorf("%w: %s", err, out)
			return
		}
		errBuilt = os.Chmod(dir, 0o755)
	})
	if errBuilt != nil {
		t.Fatal(errBuilt)
	}
	return builtPath
}

// readSources reads the module's folders, so that `go test` knows that a result
// depends on the whole program and does not take an old one from its cache.
func readSources() {
	_ = filepath.WalkDir("..", func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && len(d.Name()) > 2 && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		return nil
	})
}

func TestMain(m *testing.M) {
	code := m.Run()
	if builtPath != "" {
		_ = os.RemoveAll(filepath.Dir(builtPath))
	}
	os.Exit(code)
}

var names struct {
	sync.Mutex
	n int
}

// newName gives the name of a lab of this test alone.
func newName() string {
	names.Lock()
	defer names.Unlock()
	names.n++
	return fmt.Sprintf("t%d-%d", os.Getpid(), names.n)
}

// needLabs skips where the user cannot have labs, and says why.
func needLabs(t testing.TB, u user) {
	t.Helper()
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: u.cred, Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	if u.uid() != 0 {
		cmd = exec.Command("unshare", "-Urnm", "mount", "-t", "tmpfs", "none", "/mnt")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: u.cred}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("%s cannot make namespaces here: %v: %s", u.name, err, out)
	}
}

// TestScripts runs testdata/*.txtar as each user, side by side. In them, $LAB is
// a lab's name that is the script's own, and $LAB-b another.
func TestScripts(t *testing.T) {
	for _, u := range users() {
		t.Run(u.name, func(t *testing.T) {
			needLabs(t, u)
			program(t)
			before := machine()
			t.Cleanup(func() { sameMachine(t, before) })
			testscript.Run(t, testscript.Params{
				Dir:   "testdata",
				Setup: func(e *testscript.Env) error { return setUp(t, e, u) },
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"podlane":      func(ts *testscript.TestScript, neg bool, args []string) { runProgram(t, ts, neg, u, args) },
					"kill-holder":  func(ts *testscript.TestScript, _ bool, args []string) { ts.Check(killHolder(u.dir(args[0]))) },
					"nothing-left": func(ts *testscript.TestScript, _ bool, args []string) { nothingLeft(ts, u.dir(args[0])) },
				},
			})
		})
	}
}

func setUp(t *testing.T, e *testscript.Env, u user) error {
	name := newName()
	e.Setenv("LAB", name)
	e.Defer(func() {
		for _, n := range []string{name, name + "-b"} {
			_ = u.command(t, "lab", "down", "--name", n).Run()
		}
	})
	// An ordinary user must be able to read the script's manifests.
	for dir := e.WorkDir; len(dir) > len(os.TempDir()); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func runProgram(t *testing.T, ts *testscript.TestScript, neg bool, u user, args []string) {
	cmd := u.command(t, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = ts.MkAbs("."), ts.Stdout(), ts.Stderr()
	err := cmd.Run()
	if err != nil {
		ts.Logf("[%v]", err)
	}
	if (err != nil) != neg {
		ts.Fatalf("podlane %s: %v, want failure: %v", strings.Join(args, " "), err, neg)
	}
}

// machine gives what a lab must not change: the network of the namespace that
// the tests run in. Counters and ages are left out.
func machine() string {
	var all strings.Builder
	for _, argv := range [][]string{{"ip", "-br", "link"}, {"ip", "-br", "addr"}, {"ip", "route", "show", "table", "all"}, {"ip", "rule"},
		{"nft", "list", "tables"}, {"ip", "netns"}, {"sysctl", "net.ipv4.ip_forward"}} {
		if _, err := exec.LookPath(argv[0]); err != nil {
			continue
		}
		out, _ := exec.Command(argv[0], argv[1:]...).CombinedOutput()
		fmt.Fprintf(&all, "%s:\n%s\n", strings.Join(argv, " "), out)
	}
	return all.String()
}

func sameMachine(t *testing.T, before string) {
	t.Helper()
	if after := machine(); after != before {
		t.Errorf("the machine's own network changed from\n%s\nto\n%s", before, after)
	}
}

func killHolder(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, "holder.pid"))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	return waitUnlocked(dir)
}

// waitUnlocked waits until the killed holder has let go of the folder's lock.
func waitUnlocked(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil || time.Now().After(end) {
			return err
		}
	}
}

func nothingLeft(ts *testscript.TestScript, dir string) {
	if left := leftovers(dir); left != "" {
		ts.Fatalf("left: %s", left)
	}
}

// leftovers names what there still is of a lab: its folder, its processes, its
// mounts. A killed process takes a moment to go.
func leftovers(dir string) string {
	var left string
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if left = look(dir); left == "" {
			return ""
		}
	}
	return left
}

func look(dir string) string {
	var left []string
	if _, err := os.Lstat(dir); err == nil {
		left = append(left, dir)
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		text, err := os.ReadFile(p)
		args := strings.ReplaceAll(string(text), "\x00", " ")
		if err == nil && (strings.Contains(args, dir+" ") || strings.Contains(args, dir+"/")) {
			left = append(left, args)
		}
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err == nil && strings.Contains(string(mounts), dir) {
		left = append(left, "a mount")
	}
	return strings.Join(left, "; ")
}
