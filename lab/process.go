package lab

import (
	"errors"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"
)

// processes starts the lab's processes and reaps all children: the holder is
// the init of its PID namespace, so the orphans of its processes are its too.
// Nothing in the holder may call Wait on a child by another way.
type processes struct {
	mu      sync.Mutex
	running map[int]*process // by PID
	closed  bool
}

// process is a started child.
type process struct {
	pid    int
	done   chan struct{} // closed when it has ended
	status syscall.WaitStatus
}

func newProcesses() *processes { return &processes{running: map[int]*process{}} }

// start starts the command that build makes, inside s. build runs inside s
// too, so that the command is looked up in the file system it will see. The
// process leads a session of its own.
func (ps *processes) start(s *space, build func() (*exec.Cmd, error)) (*process, error) {
	p := &process{done: make(chan struct{})}
	err := s.run(func() error {
		cmd, err := build()
		if err != nil {
			return err
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if s != nil && s.cgroup != nil {
			cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(s.cgroup.Fd())
		}
		ps.mu.Lock() // so that reap does not meet a child it does not know yet
		defer ps.mu.Unlock()
		if ps.closed {
			return errors.New("the lab is going down")
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		p.pid = cmd.Process.Pid
		ps.running[p.pid] = p
		return cmd.Process.Release()
	})
	if err != nil {
		return nil, plainExecError(err)
	}
	return p, nil
}

func plainExecError(err error) error {
	var notFound *exec.Error
	if errors.As(err, &notFound) && errors.Is(err, exec.ErrNotFound) {
		return errors.New(notFound.Name + ": not found on this machine (a lab pulls no images: commands are the machine's own)")
	}
	return err
}

// reap collects ended children until the holder ends.
func (ps *processes) reap() {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	for range ended {
		for ps.reapOne() {
		}
	}
}

func (ps *processes) reapOne() bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	var status syscall.WaitStatus
	pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
	if errors.Is(err, syscall.EINTR) {
		return true
	}
	if err != nil || pid <= 0 {
		return false
	}
	if p := ps.running[pid]; p != nil {
		delete(ps.running, pid)
		p.status = status
		close(p.done)
	}
	return true
}

// killAll ends all processes, starts no more, and waits for their end, but no
// longer than the limit.
func (ps *processes) killAll(limit time.Duration) {
	ps.mu.Lock()
	ps.closed = true
	all := slices.Collect(maps.Values(ps.running))
	ps.mu.Unlock()
	for _, p := range all {
		p.signal(syscall.SIGKILL)
	}
	late := time.After(limit)
	for _, p := range all {
		select {
		case <-p.done:
		case <-late:
			return
		}
	}
}

// signal sends to the process and all of its group.
func (p *process) signal(sig syscall.Signal) { _ = syscall.Kill(-p.pid, sig) }

// stop asks the process to end, and after grace no longer asks.
func (p *process) stop(grace time.Duration) {
	p.signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(grace):
	}
	p.signal(syscall.SIGKILL) // also what is left of its group
	<-p.done
}

// code is the exit status as a shell gives it: 128 and the signal's number for
// a process that a signal ended. It is for ended processes.
func (p *process) code() int {
	if p.status.Signaled() {
		return 128 + int(p.status.Signal())
	}
	return p.status.ExitStatus()
}
