package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/file"
)

func (h *holder) accept(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			h.log.Error("accept", "err", err)
			return
		}
		go h.serve(conn.(*net.UnixConn))
	}
}

// serve answers one request.
func (h *holder) serve(conn *net.UnixConn) {
	defer conn.Close()
	req, dec, files, err := receiveRequest(conn)
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	if err != nil {
		_ = json.NewEncoder(conn).Encode(reply{Done: true, Error: err.Error()})
		return
	}
	left := make(chan struct{}) // closed when the front has gone
	signals := make(chan syscall.Signal, 1)
	go listen(dec, signals, left)
	r := h.answer(req, files, conn, signals, left)
	r.Done = true
	_ = json.NewEncoder(conn).Encode(r)
	if req.Verb == "down" {
		h.endOnce.Do(func() { close(h.ending) })
	}
}

func listen(dec *json.Decoder, signals chan<- syscall.Signal, left chan<- struct{}) {
	defer close(left)
	for {
		var m signalMessage
		if dec.Decode(&m) != nil {
			return
		}
		select {
		case signals <- syscall.Signal(m.Signal):
		default:
		}
	}
}

func (h *holder) answer(req request, files []*os.File, conn *net.UnixConn, signals <-chan syscall.Signal, left <-chan struct{}) reply {
	switch req.Verb {
	case "status":
		return reply{Status: h.status()}
	case "wait":
		return h.wait(conn, left)
	case "apply", "delete":
		return h.apply(req)
	case "agents":
		return errorReply(h.agents(req.Agents, left))
	case "exec":
		return h.exec(req.Exec, files, signals, left)
	case "log":
		return h.logFile(req.Exec.Target)
	case "down":
		return reply{}
	}
	return errorReply(fmt.Errorf("unknown verb %q", req.Verb))
}

func errorReply(err error) reply {
	if err == nil {
		return reply{}
	}
	return reply{Error: err.Error()}
}

// quiet is how long the cluster folder must not have changed for a wait to end:
// DNS servers follow it within a fraction of this. Agents say what they have.
const quiet = 150 * time.Millisecond

// wait comes back when all is Ready, or the front has gone. It tells of progress
// every second.
func (h *holder) wait(conn *net.UnixConn, left <-chan struct{}) reply {
	told, said := time.Now(), ""
	for {
		st := h.status()
		waiting := st.NotReady()
		if len(waiting) == 0 {
			waiting = h.behind()
		}
		if len(waiting) == 0 {
			return reply{Status: st}
		}
		if text := progressText(st, waiting); text != said && time.Since(told) > time.Second {
			told, said = time.Now(), text
			_ = json.NewEncoder(conn).Encode(reply{Progress: text})
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-left:
			return reply{Status: st}
		case <-h.ending:
			return reply{Error: "the lab is going down"}
		}
	}
}

// behind names who may not have the cluster folder as it is now.
func (h *holder) behind() []string {
	want, err := file.Version(filepath.Join(h.dir, "cluster"))
	if err != nil {
		return []string{err.Error()}
	}
	var names []string
	h.look(func() {
		for _, n := range h.nodes {
			if !n.has(want) {
				n.ask()
				names = append(names, "the agent of node "+n.Name)
			}
		}
		if time.Since(h.lastWrite) <= quiet {
			names = append(names, "the DNS servers")
		}
	})
	slices.Sort(names)
	return names
}

func progressText(st *Status, waiting []string) string {
	all := len(st.Nodes) + len(st.Pods)
	text := fmt.Sprintf("%d of %d nodes and pods ready; waiting for %s", max(0, all-len(waiting)), all, waiting[0])
	if len(waiting) > 1 {
		text += fmt.Sprintf(" and %d more", len(waiting)-1)
	}
	return text
}

func (h *holder) apply(req request) reply {
	if req.Objects == nil {
		return errorReply(errors.New("no objects"))
	}
	var r reply
	h.do(func() {
		if req.Verb == "delete" {
			h.admit(Without(h.objects, req.Objects))
		} else {
			h.admit(Merge(h.objects, req.Objects))
		}
	})
	h.look(func() { r.Problems = texts(h.problems) })
	return r
}

// agents stops or starts agents and waits until that is so.
func (h *holder) agents(req *agentsRequest, left <-chan struct{}) error {
	var nodes []*node
	var err error
	h.look(func() { nodes, err = h.named(req.Nodes) })
	if err != nil {
		return err
	}
	for _, n := range nodes {
		switch req.Action {
		case AgentStart:
			n.agent.start()
		case AgentStop, AgentKill:
			n.agent.stop(req.Action == AgentKill)
		default:
			return fmt.Errorf("unknown action %q: want stop, kill or start", req.Action)
		}
	}
	for _, n := range nodes {
		for req.Action == AgentStart && !n.ready() {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-left:
				return nil
			}
		}
	}
	return nil
}

// named gives the nodes of these names, or all.
func (h *holder) named(names []string) ([]*node, error) {
	if len(names) == 0 {
		names = slices.Sorted(maps.Keys(h.nodes))
	}
	var nodes []*node
	for _, name := range names {
		n := h.nodes[strings.TrimPrefix(name, "node/")]
		if n == nil || n.agent == nil {
			return nil, fmt.Errorf("no node %q (there are: %s)", name, strings.Join(slices.Sorted(maps.Keys(h.nodes)), ", "))
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

// exec runs a command at a target, with the front's descriptors.
func (h *holder) exec(req *execRequest, files []*os.File, signals <-chan syscall.Signal, left <-chan struct{}) reply {
	if req == nil || len(req.Argv) == 0 || len(files) != 3 {
		return errorReply(errors.New("exec: want a command and three descriptors"))
	}
	var s *space
	var err error
	env := req.Env
	h.look(func() {
		s, err = h.target(req.Target)
		if n := h.nodes[strings.TrimPrefix(req.Target, "node/")]; n != nil && n.space == s {
			env = append(slices.Clone(env), "PODLANE_BPF_DIR="+h.bpfDir(n))
		}
	})
	if err != nil {
		return errorReply(err)
	}
	p, err := h.procs.start(s, func() (*exec.Cmd, error) {
		cmd, err := lookUp(req.Argv, h.environment(env...))
		if err != nil {
			return nil, err
		}
		cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = "/", files[0], files[1], files[2]
		return cmd, nil
	})
	if err != nil {
		return errorReply(err)
	}
	for _, f := range files { // so that a reader of the output meets its end
		_ = f.Close()
	}
	for {
		select {
		case <-p.done:
			return reply{Code: p.code()}
		case sig := <-signals:
			p.signal(sig)
		case <-left:
			p.signal(syscall.SIGKILL)
			<-p.done
			return reply{Code: p.code()}
		}
	}
}

func (h *holder) logFile(target string) reply {
	var r reply
	h.look(func() {
		if target == "holder" {
			r.Path = filepath.Join(h.dir, "holder.log")
			return
		}
		if name, ok := strings.CutPrefix(target, "node/"); ok {
			nodes, err := h.named([]string{name})
			if r = errorReply(err); err == nil {
				r.Path = nodes[0].agentLog()
			}
			return
		}
		p, err := h.podNamed(target)
		if r = errorReply(err); err == nil {
			r.Path = p.logFile()
		}
	})
	return r
}

// target finds where a command is to run. A pod's name may be shortened to the
// name of its workload, for its first pod.
func (h *holder) target(target string) (*space, error) {
	if target == "outside" {
		return nil, nil
	}
	if name, ok := strings.CutPrefix(target, "node/"); ok {
		nodes, err := h.named([]string{name})
		if err != nil {
			return nil, err
		}
		return nodes[0].space, nil
	}
	p, err := h.podNamed(target)
	if err != nil {
		return nil, err
	}
	if !p.up() {
		return nil, fmt.Errorf("pod %s has no network yet: %s", target, p.why())
	}
	return p.space, nil
}

func (h *holder) podNamed(target string) (*pod, error) {
	target = strings.TrimPrefix(target, "pod/")
	namespace, name, ok := strings.Cut(target, "/")
	if !ok {
		namespace, name = "default", target
	}
	if p := h.pods[cluster.Key{Namespace: namespace, Name: name}]; p != nil {
		return p, nil
	}
	keys := slices.SortedFunc(maps.Keys(h.pods), cluster.Key.Compare)
	for _, key := range keys {
		p := h.pods[key]
		if owners := p.want.OwnerReferences; key.Namespace == namespace && len(owners) > 0 && owners[0].Name == name {
			return p, nil
		}
	}
	return nil, fmt.Errorf("no pod %q in namespace %s (there are: %s; other targets: node/NAME, outside)", name, namespace, podNames(keys, namespace))
}

func podNames(keys []cluster.Key, namespace string) string {
	var names []string
	for _, k := range keys {
		if k.Namespace == namespace {
			names = append(names, k.Name)
		}
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
