// Package install puts Podlane on a node and takes it off again: the CNI plugin and
// its configuration in the container runtime's folders, the former values of what
// the agent changes, and the removal of all that is ours. It is not the agent,
// which only tells it when the node can serve pods.
package install

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/podlane/podlane/cni"
	"github.com/podlane/podlane/cni/embedded"
)

// Runtime is the container runtime's side of a node: its CNI folders.
type Runtime struct {
	BinDir  string // /opt/cni/bin
	ConfDir string // /etc/cni/net.d; "": nothing is installed
	Socket  string // the agent's, as the runtime sees it
	Log     *slog.Logger
}

// Serve tells the runtime that the node can serve pods: it puts the plugin into
// its folder, and then the configuration, whose presence makes the node Ready.
// What is there already is left alone, so that it may be called again and again.
func (r Runtime) Serve() error {
	if r.ConfDir == "" {
		return nil
	}
	if err := os.MkdirAll(r.ConfDir, 0o755); err != nil {
		return fmt.Errorf("CNI configuration: %w", err)
	}
	have, err := os.ReadFile(filepath.Join(r.ConfDir, cni.ConflistName))
	if err == nil && bytes.Equal(have, cni.Conflist(r.Socket)) {
		if _, err := os.Stat(filepath.Join(r.BinDir, cni.PluginName)); err == nil {
			return nil
		}
	}
	path, err := embedded.Install(r.BinDir)
	if err != nil {
		return err
	}
	if err := r.loopback(); err != nil {
		return err
	}
	if err := cni.WriteConflist(r.ConfDir, r.Socket); err != nil {
		return err
	}
	r.Log.Info("node can serve pods", "plugin", path, "configuration", filepath.Join(r.ConfDir, cni.ConflistName))
	return nil
}

// loopbackName is the plugin that containerd before 2.0 and CRI-O need beside the
// network's.
const loopbackName = "loopback"

// loopback gives the runtime a loopback plugin where it has none: a link to ours,
// which does that too.
func (r Runtime) loopback() error {
	path := filepath.Join(r.BinDir, loopbackName)
	if err := os.Symlink(cni.PluginName, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("CNI plugin %s: %w", path, err)
	}
	return nil
}

func (r Runtime) removeLoopback() error {
	path := filepath.Join(r.BinDir, loopbackName)
	if to, err := os.Readlink(path); err != nil || to != cni.PluginName {
		return nil // none, or not ours
	}
	return remove(path)
}

// Served says that the runtime has the configuration of a run before this one, as far
// as that can be known.
func (r Runtime) Served() bool {
	if r.ConfDir == "" {
		return true
	}
	_, err := os.Stat(filepath.Join(r.ConfDir, cni.ConflistName))
	return err == nil
}

// Start brings a plugin of an earlier version up to date where the runtime has the
// configuration already. Pods that start before the agent is synced find the agent
// of this version.
func (r Runtime) Start() error {
	if r.ConfDir == "" {
		return nil
	}
	if !r.Served() {
		return nil
	}
	_, err := embedded.Install(r.BinDir)
	return err
}

// Remove takes the configuration and the plugin away, the configuration first.
func (r Runtime) Remove() error {
	if r.ConfDir == "" {
		return nil
	}
	return errors.Join(remove(filepath.Join(r.ConfDir, cni.ConflistName)), r.removeLoopback(), remove(filepath.Join(r.BinDir, cni.PluginName)))
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Others gives the configurations of other CNI plugins in the runtime's folder,
// which takes the first by name. Those before ours keep our pods from being ours.
func (r Runtime) Others() (before, after []string) {
	entries, err := os.ReadDir(r.ConfDir)
	if r.ConfDir == "" || err != nil {
		return nil, nil
	}
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		switch {
		case e.Name() == cni.ConflistName || !slices.Contains([]string{".conf", ".conflist", ".json"}, ext):
		case strings.Compare(e.Name(), cni.ConflistName) < 0:
			before = append(before, e.Name())
		default:
			after = append(after, e.Name())
		}
	}
	return before, after
}
