package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/file"
	"github.com/podlane/podlane/lab/control"
)

// holder is the one process of a lab. Its loop goroutine alone reads and writes
// the fields below events; all others send it functions to run.
type holder struct {
	dir     string
	opts    Options
	config  control.Config
	log     *slog.Logger
	procs   *processes
	events  chan event
	ending  chan struct{} // closed when the lab goes down
	endOnce sync.Once
	ports   int // number of made-up link names

	underlay  *underlay
	objects   *file.Objects // as given
	problems  []cluster.Problem
	expanded  *file.Objects
	written   map[string]string // the cluster folder's files
	lastWrite time.Time
	nodes     map[string]*node
	pods      map[cluster.Key]*pod
}

// Hold is the holder: it runs the lab in dir until it is told to end. It must be
// the init of new mount, PID and network namespaces, as startHolder makes them,
// with the folder's lock and the front's pipe as descriptors 3 and 4.
func Hold(dir string, stdin io.Reader) error {
	ready := os.NewFile(4, "ready")
	unix.CloseOnExec(3) // the lock is held as long as this process lives
	unix.CloseOnExec(4)
	// Before /proc is mounted anew it shows the PID that the front sees.
	if pid, err := os.Readlink("/proc/self"); err == nil {
		_ = os.WriteFile(filepath.Join(dir, "holder.pid"), []byte(pid+"\n"), 0o600)
	}
	h, listener, err := newHolder(dir, stdin)
	if err != nil {
		err = plainStartError(err)
		_, _ = fmt.Fprintln(ready, err)
		return err
	}
	if _, err := fmt.Fprintln(ready, "ready"); err != nil {
		h.shutdown()
		return fmt.Errorf("the front that started this lab has gone: %w", err)
	}
	_ = ready.Close()
	h.run(listener)
	return nil
}

func plainStartError(err error) error {
	// AppArmor lets a user namespace be made and then refuses all rights in it.
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w (%v)", errNoUserNamespaces, err)
	}
	return err
}

func newHolder(dir string, stdin io.Reader) (*holder, net.Listener, error) {
	var opts Options
	if err := json.NewDecoder(stdin).Decode(&opts); err != nil {
		return nil, nil, fmt.Errorf("options: %w", err)
	}
	config, err := control.Default(opts.Families)
	if err != nil {
		return nil, nil, err
	}
	h := &holder{
		dir: dir, opts: opts, config: config, log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		procs: newProcesses(), events: make(chan event), ending: make(chan struct{}),
		objects: &file.Objects{}, written: map[string]string{}, nodes: map[string]*node{},
		pods: map[cluster.Key]*pod{},
	}
	go h.procs.reap()
	if err := privateMounts(dir, opts.Executable); err != nil {
		return nil, nil, err
	}
	for _, sub := range []string{"cluster", "nodes", "pods"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, nil, err
		}
	}
	if h.underlay, err = newUnderlay(); err != nil {
		return nil, nil, err
	}
	listener, err := net.Listen("unix", filepath.Join(dir, "lab.sock"))
	if err != nil {
		return nil, nil, err
	}
	return h, listener, os.Chmod(filepath.Join(dir, "lab.sock"), 0o600)
}

// event is a function for the loop, and whether it changes anything.
type event struct {
	run    func()
	change bool
	done   chan struct{}
}

// run is the loop. Requests and observations are functions that it runs one by
// one; after one that changes something it brings the lab to what the objects
// want.
func (h *holder) run(listener net.Listener) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	h.admit(Merge(systemObjects(h.config, h.opts), h.opts.Objects))
	h.opts.Objects = nil
	h.sync()
	go h.accept(listener)
	for {
		select {
		case e := <-h.events:
			e.run()
			if e.change {
				h.sync()
			}
			close(e.done)
		case <-signals:
			h.shutdown()
			return
		case <-h.ending:
			h.shutdown()
			return
		}
	}
}

// do has the loop run f, which changes something, and waits for it and what
// follows of it. It gives false when the lab ends.
func (h *holder) do(f func()) bool { return h.send(event{f, true, make(chan struct{})}) }

// look is do for an f that changes nothing.
func (h *holder) look(f func()) bool { return h.send(event{f, false, make(chan struct{})}) }

func (h *holder) send(e event) bool {
	select {
	case h.events <- e:
		<-e.done
		return true
	case <-h.ending:
		return false
	}
}

// poke has the loop look again at what is running, soon.
func (h *holder) poke() { go h.do(func() {}) }

// admit takes the objects as the lab's, with what admission fills in. What it
// refuses stays as it was given, and is a problem until it is changed.
func (h *holder) admit(objects *file.Objects) {
	admitted, _ := h.config.Admit(objects)
	h.objects = Merge(objects, &file.Objects{Nodes: admitted.Nodes, Services: admitted.Services})
}

// sync makes the nodes and pods that the objects want, ends the others, and
// writes the cluster folder. It waits for no process.
func (h *holder) sync() {
	admitted, problems := h.config.Admit(h.objects)
	h.problems = problems
	observed := map[cluster.Key]control.Observed{}
	for key, p := range h.pods {
		observed[key] = p.observed()
	}
	h.expanded = control.Expand(withDNSPods(admitted), observed)
	h.renumberNodes()
	// First the folder: an agent must find all there is when it starts.
	if err := h.writeCluster(); err != nil {
		h.log.Error("write the cluster folder", "err", err)
	}
	h.syncNodes()
	h.syncPods()
}

// shutdown ends all processes and removes the folder. What would still be there
// ends with the holder, the init of its PID namespace.
func (h *holder) shutdown() {
	h.endOnce.Do(func() { close(h.ending) })
	h.procs.killAll(time.Second)
	for _, sub := range []string{"netns", "bin", "bpf"} {
		_ = unix.Unmount(filepath.Join(h.dir, sub), unix.MNT_DETACH)
	}
	if err := removeDir(h.dir); err != nil {
		h.log.Error("remove the lab's folder", "err", err)
	}
}

// writeCluster brings the folder that agents and DNS servers follow to the
// expanded objects: a file a kind, each replaced at once.
func (h *holder) writeCluster() error {
	o := h.expanded
	return errors.Join(
		writeKind(h, "nodes", o.Nodes), writeKind(h, "namespaces", o.Namespaces), writeKind(h, "pods", o.Pods),
		writeKind(h, "services", o.Services), writeKind(h, "endpointslices", o.EndpointSlices))
}

func writeKind[T any](h *holder, kind string, objects []T) error {
	var text strings.Builder
	for _, o := range objects {
		doc, err := yaml.Marshal(o)
		if err != nil {
			return err
		}
		text.WriteString("---\n")
		text.Write(doc)
	}
	if h.written[kind] == text.String() {
		return nil
	}
	path := filepath.Join(h.dir, "cluster", kind+".yaml")
	temporary := filepath.Join(h.dir, "cluster", "."+kind+".new")
	if err := os.WriteFile(temporary, []byte(text.String()), 0o600); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	h.written[kind], h.lastWrite = text.String(), time.Now()
	return nil
}
