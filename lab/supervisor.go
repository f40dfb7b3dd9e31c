package lab

import (
	"fmt"
	"sync"
	"syscall"
	"time"
)

// The waits before a crashed process is started again: doubled each time up to
// the limit, from the first again once it has run for the limit.
const (
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = 5 * time.Second
	stopGrace    = 3 * time.Second
)

// supervisor keeps one process running: an agent or a container. It starts it
// again when it ends by itself, unless it was stopped on purpose.
type supervisor struct {
	launch func() (*process, error)
	log    string // a file whose last line tells why a process ended; may be ""
	once   bool   // an end with status 0 is final
	onStep func() // called after each change of state

	mu       sync.Mutex
	want     bool
	proc     *process
	restarts int
	reason   string // why it does not run
	done     bool   // once, and ended with status 0
	wake     chan struct{}
	ended    chan struct{} // closed when run has come back
}

func newSupervisor(launch func() (*process, error), onStep func()) *supervisor {
	return &supervisor{launch: launch, onStep: onStep, wake: make(chan struct{}, 1), ended: make(chan struct{})}
}

// ProcessStatus is the state of a supervised process.
type ProcessStatus struct {
	// State is running, stopped (on purpose), waiting (between two starts) or
	// completed.
	State    string `json:"state"`
	PID      int    `json:"pid,omitempty"` // in the lab's PID namespace
	Restarts int    `json:"restarts"`
	Reason   string `json:"reason,omitempty"`
}

func (s *supervisor) status() ProcessStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := ProcessStatus{Restarts: s.restarts, Reason: s.reason}
	switch {
	case s.proc != nil:
		st.State, st.PID = "running", s.proc.pid
	case s.done:
		st.State = "completed"
	case s.want:
		st.State = "waiting"
	default:
		st.State = "stopped"
	}
	return st
}

// run is the supervisor's goroutine; it ends when stop is closed, with the
// process ended.
func (s *supervisor) run(stop <-chan struct{}) {
	defer close(s.ended)
	backoff := firstBackoff
	for {
		if !s.wanted() {
			select {
			case <-s.wake:
				backoff = firstBackoff
				continue
			case <-stop:
				return
			}
		}
		began := time.Now()
		if !s.oneRun(stop) {
			return
		}
		if time.Since(began) > lastBackoff {
			backoff = firstBackoff
		}
		if !s.wanted() {
			continue
		}
		select {
		case <-time.After(backoff):
			backoff = min(2*backoff, lastBackoff)
		case <-s.wake:
		case <-stop:
			return
		}
	}
}

func (s *supervisor) wanted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.want && !s.done
}

// oneRun starts the process and waits for its end. It gives false when stop
// was closed.
func (s *supervisor) oneRun(stop <-chan struct{}) bool {
	p, err := s.launch()
	if err != nil {
		s.noteEnd(nil, err.Error())
		return true
	}
	s.set(func() { s.proc, s.reason = p, "" })
	if !s.wanted() { // stopped meanwhile
		p.stop(stopGrace)
	}
	select {
	case <-p.done:
		s.noteEnd(p, exitReason(p, s.log))
		return true
	case <-stop:
		p.stop(stopGrace)
		s.noteEnd(p, "")
		return false
	}
}

// exitReason says how a process ended; of one that gave up itself, its last words
// tell why.
func exitReason(p *process, log string) string {
	if p.status.Signaled() {
		return fmt.Sprintf("ended by signal %d (%v)", int(p.status.Signal()), p.status.Signal())
	}
	return withReason(fmt.Sprintf("ended with status %d", p.code()), tail(log, 1))
}

func (s *supervisor) noteEnd(p *process, reason string) {
	s.set(func() {
		s.proc, s.reason = nil, reason
		if s.once && p != nil && p.code() == 0 {
			s.done = true
		} else if s.want {
			s.restarts++
		}
	})
}

func (s *supervisor) set(f func()) {
	s.mu.Lock()
	f()
	s.mu.Unlock()
	if s.onStep != nil {
		s.onStep()
	}
}

// start has the process run from now on.
func (s *supervisor) start() {
	s.set(func() { s.want = true })
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// stop ends the process on purpose, with SIGTERM first or with SIGKILL at once,
// and waits for its end.
func (s *supervisor) stop(kill bool) {
	var p *process
	s.set(func() { s.want, p = false, s.proc })
	if p == nil {
		return
	}
	if kill {
		p.signal(syscall.SIGKILL)
		<-p.done
		return
	}
	p.stop(stopGrace)
}
