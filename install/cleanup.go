package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/kernel/bpf"
	"github.com/podlane/podlane/kernel/bpf/socket"
	"github.com/podlane/podlane/kernel/conntrack"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/kernel/nft"
)

// Traces are the places where a node has something of ours.
type Traces struct {
	Runtime
	RunDir, StateDir string
	ProcSys          string       // "" for /proc/sys
	BPFDir           string       // of the fast path; "" for none
	FlowLimits       string       // name of the file of the flow table's former limits, in StateDir
	Chains           func() error // removes the rules of the iptables backend, where there are
	// KubeletConfigs are where an agent's pod has the kubelet's kubeconfig mounted from:
	// where a node has no such file, the container runtime has made a folder of that name.
	KubeletConfigs []string
}

// Cleanup removes all that is ours from the node of the calling thread's network
// namespace, and gives sysctls their former values. It goes on after an error, and
// may be repeated. Podlane's own pods have some time to end; others that run lose their
// network.
func Cleanup(ctx context.Context, t Traces, log *slog.Logger) error {
	unlock, err := alone(t.RunDir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := t.awaitEnd(ctx, endingTime, log); err != nil {
		return err
	}
	steps := []struct {
		what string
		skip bool // it is not said where that is
		do   func() error
	}{
		{"CNI configuration and plugin", t.ConfDir == "", t.Runtime.Remove},
		{"fast path", t.BPFDir == "", t.removeFastPath},
		{"nftables tables", false, removeTables},
		{"chains of iptables", t.Chains == nil, t.Chains},
		{"links, addresses, routes, neighbours, sysctls", false, t.removeLinks},
		{"limits of the flow table", false, func() error { return conntrack.Restore(filepath.Join(t.StateDir, t.FlowLimits)) }},
	}
	var errs []error
	for _, s := range steps {
		if s.skip {
			log.Warn("left as it is, for it is not said where it is", "what", s.what)
			continue
		}
		if err := s.do(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.what, err))
			continue
		}
		log.Info("nothing of ours is there any more", "what", s.what)
	}
	if len(errs) > 0 { // the next try needs what is in the files
		return errors.Join(errs...)
	}
	if err := errors.Join(empty(t.StateDir), empty(t.RunDir), t.removeKubeletConfigs()); err != nil {
		return fmt.Errorf("files: %w", err)
	}
	log.Info("nothing of ours is there any more", "what", "files")
	return nil
}

// removeKubeletConfigs removes folders that stand where the kubelet would have a file:
// `kubeadm join` would fail on one. Their parent goes too where it is empty then, but
// not from a pod, which has that mounted.
func (t Traces) removeKubeletConfigs() error {
	var errs []error
	for _, path := range t.KubeletConfigs {
		err := unix.Rmdir(path)
		if err == nil {
			err = unix.Rmdir(filepath.Dir(path))
		}
		switch {
		case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EBUSY), errors.Is(err, unix.EROFS):
		default:
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}

// alone makes sure that no agent runs: it would bring all back.
func alone(runDir string) (unlock func(), err error) {
	dir, err := os.Open(runDir)
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = dir.Close()
		return nil, fmt.Errorf("an agent is running with %s: delete it first (kubectl delete -f podlane.yaml): %w", runDir, err)
	}
	return func() { _ = dir.Close() }, nil
}

func (t Traces) removeFastPath() error {
	return errors.Join(socket.Remove(t.BPFDir), bpf.Remove(t.BPFDir), bpf.RemoveQdiscs())
}

// removeTables removes our tables of any layout.
func removeTables() error {
	c, err := nft.Dial(0)
	if err != nil {
		return err
	}
	defer c.Close()
	tables, err := c.Tables()
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range tables {
		var tx nft.Tx
		tx.DeleteTable(t)
		if err := c.Commit(&tx); err != nil { // of a trace under way: the kernel lets no other have it
			errs = append(errs, fmt.Errorf("table %s: %w", t, err))
		}
	}
	return errors.Join(errs...)
}

// removeLinks removes what carries our mark, then restores sysctls.
func (t Traces) removeLinks() error {
	h, err := link.Open(t.ProcSys)
	if err != nil {
		return err
	}
	defer h.Close()
	have, err := h.Read()
	if err != nil {
		return err
	}
	return errors.Join(h.Apply(link.Diff(have, link.NewState())), NewFormer(t.StateDir).Restore(h))
}

// empty removes a folder. One that is a mount point is emptied.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, unix.EBUSY) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
