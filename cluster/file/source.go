package file

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/internal/newest"
)

const (
	// quiet is how long nothing must have changed before the folder is read: a
	// program that writes a file in place empties it first.
	quiet = 20 * time.Millisecond
	// patience is how long changes without a pause may put that off.
	patience = 200 * time.Millisecond
	// lookAgain is how often a folder that went away is looked for.
	lookAgain = 250 * time.Millisecond
	// swapped is the link by which a mounted ConfigMap changes all its files at
	// once.
	swapped = "..data"
)

// Options say what a Source makes of the objects.
type Options struct {
	// Node restricts the Snapshot's Pods to those of one node.
	Node string
	Log  *slog.Logger // nil: none
}

// Source follows a folder, or one file, and publishes a Snapshot for each change.
//
// What can no longer be read stays as it was: a file with a malformed document
// keeps the objects it had (its readable documents count), and so does a folder
// that goes away. Both are Problems until they are mended. A file that is deleted
// takes its objects with it.
type Source struct {
	dir  dir
	node string
	log  *slog.Logger
	out  newest.Chan[*cluster.Snapshot]

	// Of Run alone.
	watcher   *fsnotify.Watcher
	files     tree
	have      map[ref]metav1.Object
	builder   *cluster.Builder
	started   bool
	published string // the version

	mu       sync.Mutex
	problems []cluster.Problem
	warning  string
}

// New makes a Source of a folder or a file, which must be there.
func New(path string, o Options) (*Source, error) {
	d, err := dirOf(path)
	if err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Source{
		dir: d, node: o.Node, log: o.Log, out: make(newest.Chan[*cluster.Snapshot], 1),
		files: tree{}, have: map[ref]metav1.Object{}, builder: cluster.NewBuilder(),
	}, nil
}

// Snapshots gives the newest Snapshot that was not taken yet. The first one comes
// when the whole folder has been read.
func (s *Source) Snapshots() <-chan *cluster.Snapshot { return s.out }

// Problems gives what is wrong with the text at present (see Read).
func (s *Source) Problems() []cluster.Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.problems)
}

// Warning names the kinds that are not used, or is "".
func (s *Source) Warning() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.warning
}

// Run follows the folder until ctx ends, which is no error. It may be called
// once.
func (s *Source) Run(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", s.dir.path, err)
	}
	defer w.Close()
	if err := w.Add(s.dir.path); err != nil {
		return fmt.Errorf("watch %s: %w", s.dir.path, err)
	}
	s.watcher = w
	s.read(changes{all: true})
	s.loop(ctx)
	return nil
}

// changes are the files to read again.
type changes struct {
	all   bool
	names map[string]bool
	since time.Time // of the first one
}

func (s *Source) loop(ctx context.Context) {
	var pending changes
	timer := time.NewTimer(quiet)
	timer.Stop()
	defer timer.Stop()
	lost := false
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-s.watcher.Events:
			if s.isRoot(e) {
				lost = true
				s.watcher.Remove(s.dir.path) // of a folder that was renamed
			} else if !pending.note(s.dir, e) {
				continue
			}
		case <-s.watcher.Errors: // events were lost
			pending.all = true
		case <-timer.C:
			if lost && s.watcher.Add(s.dir.path) != nil {
				s.read(changes{}) // says that it is gone
				timer.Reset(lookAgain)
				continue
			}
			pending.all = pending.all || lost
			lost = false
			s.read(pending)
			pending = changes{}
			continue
		}
		if pending.since.IsZero() {
			pending.since = time.Now()
		}
		timer.Reset(max(0, min(quiet, patience-time.Since(pending.since))))
	}
}

// isRoot says that the folder itself was deleted or renamed.
func (s *Source) isRoot(e fsnotify.Event) bool {
	return e.Name == filepath.Clean(s.dir.path) && (e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename))
}

// note takes an event, and says whether it matters.
func (c *changes) note(d dir, e fsnotify.Event) bool {
	name := filepath.Base(e.Name)
	switch {
	case name == swapped:
		c.all = true
	case d.wants(name):
		if c.names == nil {
			c.names = map[string]bool{}
		}
		c.names[name] = true
	default:
		return false
	}
	return true
}

// read reads the files that changed and publishes what came of it.
func (s *Source) read(c changes) {
	names, err := s.dir.names()
	if err != nil {
		s.report(append(s.mergedProblems(), fileProblem(s.dir.path, "", err.Error()+": what was read before stays")))
		if !s.started {
			s.publish()
		}
		return
	}
	for name := range s.files {
		if !slices.Contains(names, name) {
			delete(s.files, name)
		}
	}
	for _, name := range names {
		if old := s.files[name]; old == nil || c.all || c.names[name] {
			s.readFile(name, old)
		}
	}
	s.update()
}

func (s *Source) readFile(name string, old *parsed) {
	now := s.dir.parse(name)
	if errors.Is(now.unreadable, fs.ErrNotExist) {
		delete(s.files, name)
		return
	}
	if now.failed && old != nil {
		now.keep(name, old)
	}
	s.files[name] = now
}

// keep adds the objects of the file's older version that the malformed newer one
// does not have.
func (p *parsed) keep(name string, old *parsed) {
	has := map[ref]bool{}
	for _, e := range p.entries {
		has[e.ref] = true
	}
	var kept []entry
	for _, e := range old.entries {
		if !has[e.ref] {
			kept = append(kept, e)
		}
	}
	if len(kept) > 0 {
		p.entries = append(kept, p.entries...)
		p.problems = append(p.problems, fileProblem(name, "",
			fmt.Sprint("objects kept as they were until the file can be read: ", len(kept))))
	}
}

func (s *Source) mergedProblems() []cluster.Problem {
	_, problems := s.files.merge()
	return problems
}

// update brings the differences into the Builder. An object of a file that was
// not read again is the same one as before, by pointer.
func (s *Source) update() {
	merged, problems := s.files.merge()
	now := make(map[ref]metav1.Object, len(merged))
	for _, e := range merged {
		now[e.ref] = e.object
		if s.have[e.ref] != e.object {
			set(s.builder, e.object, s.node)
		}
	}
	for r := range s.have {
		if now[r] == nil {
			unset(s.builder, r)
		}
	}
	s.have = now
	s.report(problems)
	if s.builder.Pending() || !s.started || s.version() != s.published {
		s.publish()
	}
}

// publish sends also where the text alone has changed: who waits for that version
// has to see it.
func (s *Source) publish() {
	s.started, s.published = true, s.version()
	next := s.builder.Publish()
	next.Version = s.published
	s.out.Send(next)
}

func (s *Source) version() string {
	sums := make(map[string][sha256.Size]byte, len(s.files))
	for name, p := range s.files {
		sums[name] = p.sum
	}
	return version(sums)
}

// report keeps the problems for status and logs those that are new.
func (s *Source) report(problems []cluster.Problem) {
	text := warning(s.files.unknown())
	s.mu.Lock()
	old, oldText := s.problems, s.warning
	s.problems, s.warning = problems, text
	s.mu.Unlock()
	for _, p := range problems {
		if !slices.Contains(old, p) {
			s.log.Warn("cluster objects", "err", p.String())
		}
	}
	if text != "" && text != oldText {
		s.log.Warn(text)
	}
}
