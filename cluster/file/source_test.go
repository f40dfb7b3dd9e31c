package file

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podlane/podlane/cluster"
)

const wait = 20 * time.Second // for what must come; a busy machine is slow

// logs keeps what a Source logged.
type logs struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

type follower struct {
	*Source
	t    *testing.T
	dir  string
	last *cluster.Snapshot
	logs *logs
}

func follow(t *testing.T, path string) *follower {
	t.Helper()
	f := &follower{t: t, dir: path, logs: &logs{}}
	s, err := New(path, Options{Log: slog.New(slog.NewTextHandler(f.logs, nil))})
	if err != nil {
		t.Fatal(err)
	}
	f.Source = s
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *follower) write(name, text string) { write(f.t, filepath.Join(f.dir, name), text) }

// services waits for a Snapshot with just these Services, and gives it.
func (f *follower) services(want ...string) *cluster.Snapshot {
	f.t.Helper()
	var got []string
	f.until(fmt.Sprint("Services ", want), func(s *cluster.Snapshot) bool {
		got = got[:0]
		for _, k := range s.Services.Keys() {
			got = append(got, k.Name)
		}
		return slices.Equal(got, want)
	})
	return f.last
}

func (f *follower) until(what string, is func(*cluster.Snapshot) bool) {
	f.t.Helper()
	limit := time.After(wait)
	for f.last == nil || !is(f.last) {
		select {
		case f.last = <-f.Snapshots():
		case <-limit:
			f.t.Fatalf("%s did not come; problems %q", what, f.Problems())
		}
	}
}

// problem waits for a problem with this text; "" waits until there is none.
func (f *follower) problem(text string) {
	f.t.Helper()
	for end := time.Now().Add(wait); ; time.Sleep(5 * time.Millisecond) {
		all := texts(f.Problems())
		if text == "" && len(all) == 0 || text != "" && strings.Contains(strings.Join(all, "\n"), text) {
			return
		}
		if time.Now().After(end) {
			f.t.Fatalf("problems are %q, want %q", all, text)
		}
	}
}

func service(name, ip string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec: {clusterIP: %s, ports: [{port: 80}]}\n", name, ip)
}

func TestSource_follows(t *testing.T) {
	f := follow(t, unpack(t, "-- a.yaml --\n"+service("a", "10.0.0.1")))
	first := f.services("a")
	f.write("b.yaml", service("b", "10.0.0.2"))
	second := f.services("a", "b")
	key := cluster.Key{Namespace: "default", Name: "a"}
	if first.Services.Get(key) != second.Services.Get(key) {
		t.Error("an object of a file that did not change has a new pointer")
	}
	f.write("b.yaml", service("b", "10.0.0.2")+service("c", "10.0.0.3"))
	third := f.services("a", "b", "c")
	if b := (cluster.Key{Namespace: "default", Name: "b"}); second.Services.Get(b) != third.Services.Get(b) {
		t.Error("an equal object of a file that was read again has a new pointer")
	}
	if err := os.Remove(filepath.Join(f.dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	f.services("b", "c")
}

func TestSource_emptyFolder(t *testing.T) {
	f := follow(t, t.TempDir())
	f.services()
	f.write("a.yaml", service("a", "10.0.0.1"))
	f.services("a")
}

// TestSource_editors: what editors do beside and instead of writing in place.
func TestSource_editors(t *testing.T) {
	f := follow(t, unpack(t, "-- a.yaml --\n"+service("a", "10.0.0.1")))
	f.services("a")
	for i, temporary := range []string{".a.yaml.swp", "a.yaml~", ".#a.yaml", "#a.yaml#", "4913", "a.yaml.tmp"} {
		name := fmt.Sprint("b", i)
		f.write(temporary, "{ malformed")
		if err := os.Rename(filepath.Join(f.dir, temporary), filepath.Join(f.dir, "."+temporary)); err != nil {
			t.Fatal(err)
		}
		f.write(temporary, service(name, "10.0.0.2"))
		if err := os.Rename(filepath.Join(f.dir, temporary), filepath.Join(f.dir, "a.yaml")); err != nil {
			t.Fatal(err)
		}
		f.services(name)
	}
	f.problem("")
}

// TestSource_configMap: a mounted ConfigMap changes all files by one link.
func TestSource_configMap(t *testing.T) {
	dir := unpack(t, "-- ..1/a.yaml --\n"+service("a", "10.0.0.1")+"-- ..2/a.yaml --\n"+service("b", "10.0.0.1"))
	link := func(target, name string) {
		t.Helper()
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	link("..1", "..data")
	link("..data/a.yaml", "a.yaml")
	f, one := follow(t, dir), follow(t, filepath.Join(dir, "a.yaml"))
	f.services("a")
	one.services("a")
	link("..2", "..new")
	if err := os.Rename(filepath.Join(dir, "..new"), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	f.services("b")
	one.services("b")
}

func TestSource_malformedKeepsWhatWas(t *testing.T) {
	good := service("a", "10.0.0.1") + service("b", "10.0.0.2")
	f := follow(t, unpack(t, "-- a.yaml --\n"+good+"-- z.yaml --\n"+service("z", "10.0.0.9")))
	f.services("a", "b", "z")
	f.write("a.yaml", service("a", "10.0.0.3")+"---\n{ malformed\n")
	f.problem("File a.yaml: document 2 (line 7): not YAML")
	f.problem("File a.yaml: objects kept as they were until the file can be read: 1")
	f.write("x.yaml", service("x", "10.0.0.8"))
	s := f.services("a", "b", "x", "z")
	if got := s.Services.Get(cluster.Key{Namespace: "default", Name: "a"}).ClusterIPs[0].String(); got != "10.0.0.3" {
		t.Errorf("the readable document does not count: %s", got)
	}
	f.write("a.yaml", "{ worse")
	f.problem("File a.yaml: objects kept as they were until the file can be read: 2")
	f.write("a.yaml", service("a", "10.0.0.1"))
	f.services("a", "x", "z")
	f.problem("")
	if n := strings.Count(f.logs.String(), "until the file can be read: 1"); n != 1 {
		t.Errorf("the problem was logged %d times", n)
	}
}

func TestSource_folderGoesAndComesBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "objects")
	write(t, filepath.Join(dir, "a.yaml"), service("a", "10.0.0.1"))
	f := follow(t, dir)
	f.services("a")
	for i, away := range []func() error{
		func() error { return os.RemoveAll(dir) },
		func() error { return os.Rename(dir, dir+".away") },
	} {
		old := f.last
		if err := away(); err != nil {
			t.Fatal(err)
		}
		f.problem("what was read before stays")
		select {
		case s := <-f.Snapshots():
			// The files may have been seen to go before the folder.
			f.last = s
		default:
		}
		if i == 1 && f.last != old {
			t.Error("renaming the folder changed the Snapshot")
		}
		name := fmt.Sprint("b", i)
		f.write("b.yaml", service(name, "10.0.0.2"))
		f.services(name)
		f.problem("")
	}
}

func TestSource_oneFile(t *testing.T) {
	dir := unpack(t, "-- a.yaml --\n"+service("a", "10.0.0.1")+"-- b.yaml --\n"+service("b", "10.0.0.2"))
	f := follow(t, filepath.Join(dir, "a.yaml"))
	f.services("a")
	f.dir = dir
	f.write(".a.tmp", service("c", "10.0.0.3"))
	if err := os.Rename(filepath.Join(dir, ".a.tmp"), filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	f.services("c")
	if err := os.Remove(filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	f.problem("what was read before stays")
	f.write("a.yaml", service("d", "10.0.0.3"))
	f.services("d")
	f.problem("")
}

func TestSource_warning(t *testing.T) {
	f := follow(t, unpack(t, "-- a.yaml --\n{apiVersion: v1, kind: ConfigMap}\n"))
	f.services()
	f.write("b.yaml", "{apiVersion: v1, kind: Secret}\n---\n"+service("b", "10.0.0.2"))
	f.services("b")
	if want := "kinds that Podlane does not use: ConfigMap (1), Secret (1)"; f.Warning() != want || !strings.Contains(f.logs.String(), want) {
		t.Errorf("warning %q, log %s", f.Warning(), f.logs)
	}
}

func TestNew_missing(t *testing.T) {
	if _, err := New(filepath.Join(t.TempDir(), "x"), Options{}); err == nil {
		t.Error("a folder that is not there is no error")
	}
}

// TestSource_likeRead makes random changes of files, in place and by renaming,
// and compares the Snapshot that comes with that of a reader who starts anew.
func TestSource_likeRead(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	f := follow(t, t.TempDir())
	for range 15 {
		for range 1 + r.IntN(8) {
			f.randomChange(r)
		}
		o, problems, err := Read(f.dir)
		if err != nil {
			t.Fatal(err)
		}
		want := o.Snapshot("")
		f.until("the same as Read", func(s *cluster.Snapshot) bool { return reflect.DeepEqual(contents(s), contents(want)) })
		for end := time.Now().Add(wait); !slices.Equal(f.Problems(), problems) && time.Now().Before(end); {
			time.Sleep(5 * time.Millisecond)
		}
		if d := cmp.Diff(texts(problems), texts(f.Problems())); d != "" {
			t.Fatal(d)
		}
	}
}

func (f *follower) randomChange(r *rand.Rand) {
	name := fmt.Sprintf("f%d.yaml", r.IntN(5))
	path := filepath.Join(f.dir, name)
	if r.IntN(4) == 0 {
		os.Remove(path)
		return
	}
	var text strings.Builder
	for range r.IntN(5) {
		text.WriteString(service(fmt.Sprint("s", r.IntN(8)), fmt.Sprint("10.0.0.", r.IntN(3))))
	}
	if r.IntN(2) == 0 {
		f.write(name, text.String())
		return
	}
	f.write(name+".tmp", text.String())
	if err := os.Rename(path+".tmp", path); err != nil {
		f.t.Fatal(err)
	}
}

func contents(s *cluster.Snapshot) []any {
	services := map[cluster.Key]cluster.Service{}
	for k, v := range s.Services.All() {
		services[k] = *v
	}
	return []any{services, s.Nodes.Len(), s.Slices.Len()}
}
