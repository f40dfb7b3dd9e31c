package live_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/file"
	"github.com/podlane/podlane/doctor"
	"github.com/podlane/podlane/explain"
	"github.com/podlane/podlane/explain/live"
	"github.com/podlane/podlane/lab"
)

var built struct {
	sync.Once
	path string
	err  error
}

// program builds podlane once.
func program(t testing.TB) string {
	t.Helper()
	built.Do(func() {
		dir, err := os.MkdirTemp("", "podlane-live-test-")
		if err != nil {
			built.err = err
			return
		}
		built.path = filepath.Join(dir, "podlane")
		cmd := exec.Command("go", "build", "-o", built.path, "github.com/podlane/podlane/cmd/podlane")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("%w: %s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	live.Program = built.path
	return built.path
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.path != "" {
		_ = os.RemoveAll(filepath.Dir(built.path))
	}
	os.Exit(code)
}

// world is a lab of a test.
type world struct {
	testing.TB
	*lab.Client
	name string
}

var names struct {
	sync.Mutex
	n int
}

func newName() string {
	names.Lock()
	defer names.Unlock()
	names.n++
	return fmt.Sprintf("live-%d-%d", os.Getpid(), names.n)
}

// up starts a lab that ends with the test.
func up(t testing.TB, opts lab.Options, manifests string) *world {
	t.Helper()
	opts.Executable, opts.Name, opts.Timeout = program(t), newName(), 90*time.Second
	objects, problems := file.Parse("test.yaml", []byte(manifests))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	opts.Objects = objects
	client, err := lab.Up(t.Context(), opts)
	var refused *lab.ProblemsError
	if err != nil && !errors.As(err, &refused) {
		if strings.Contains(err.Error(), "user namespaces") {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Down(context.Background()) })
	return &world{TB: t, Client: client, name: opts.Name}
}

// sh runs a shell command at a target of the lab.
func (w *world) sh(target, command string) string {
	w.Helper()
	out, err := w.Client.Output(w.Context(), target, "sh", "-c", command)
	if err != nil {
		w.Fatalf("%s: %s: %v", target, command, err)
	}
	return out
}

func (w *world) read() *live.Cluster {
	w.Helper()
	c, err := live.Lab(w.Context(), w.name)
	if err != nil {
		w.Fatal(err)
	}
	return c
}

func (w *world) verify(from, to string) *live.Verification {
	w.Helper()
	v, err := w.read().Verify(w.Context(), explain.Access{From: from, To: to, Protocol: cluster.TCP})
	if err != nil {
		w.Fatal(err)
	}
	return v
}

// examine gives what doctor finds, without what is merely worth knowing.
func (w *world) examine() []doctor.Finding {
	w.Helper()
	c := w.read()
	exams, err := c.Exam(w.Context(), c.NodeNames()...)
	if err != nil {
		w.Fatal(err)
	}
	var list []doctor.Finding
	for _, f := range append(doctor.Cluster(c.AnyPlan()), doctor.Nodes(exams)...) {
		if f.Severity != doctor.Info {
			list = append(list, f)
		}
	}
	return list
}

// settled waits until the kernels have what the cluster wants.
func (w *world) settled() {
	w.Helper()
	for end := time.Now().Add(15 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		c := w.read()
		reports, err := c.Report(w.Context(), c.NodeNames()...)
		if err != nil {
			w.Fatal(err)
		}
		left := ""
		for _, r := range reports {
			for _, d := range r.Differences {
				left += d.String() + "\n"
			}
		}
		if left == "" {
			return
		}
		if time.Now().After(end) {
			w.Fatalf("the lab does not settle:\n%s", left)
		}
	}
}
