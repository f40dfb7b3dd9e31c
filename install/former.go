package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/podlane/podlane/kernel/link"
)

// FormerFile is the file of the former sysctls in the agent's state folder.
const FormerFile = "former-sysctls.v1.json"

// Former keeps the values that sysctls had before the agent changed them the first
// time, by their paths below /proc/sys.
type Former struct {
	path   string
	values map[string]string // nil before the file has been read
	lost   error             // what the file had cannot be read
}

// NewFormer gives the Former of a state folder.
func NewFormer(stateDir string) *Former {
	return &Former{path: filepath.Join(stateDir, FormerFile)}
}

// Keep writes down what is about to be changed. Parameters of our own links are
// left out, since they go with the links.
func (f *Former) Keep(have, want map[string]string) error {
	if err := f.read(); err != nil {
		return err
	}
	fresh := maps.Clone(f.values)
	for path, value := range want {
		was, exists := have[path]
		if _, known := fresh[path]; !known && exists && was != value && !strings.Contains(path, "/"+link.Prefix) {
			fresh[path] = was
		}
	}
	if len(fresh) == len(f.values) {
		return nil
	}
	text, err := json.MarshalIndent(fresh, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFile(f.path, append(text, '\n')); err != nil {
		return fmt.Errorf("former sysctls: %w", err)
	}
	f.values = fresh
	return nil
}

func (f *Former) read() error {
	if f.values != nil {
		return nil
	}
	text, err := os.ReadFile(f.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("former sysctls: %w", err)
	}
	values := map[string]string{}
	if err == nil {
		err = json.Unmarshal(text, &values)
		if err != nil { // a crash of the machine, or somebody: no reason for a node without a network
			f.lost = fmt.Errorf("former sysctls: %s is broken, and now %[1]s.bad: %w", f.path, err)
			values = map[string]string{}
			if err := os.Rename(f.path, f.path+".bad"); err != nil {
				return fmt.Errorf("former sysctls: %w", err)
			}
		}
	}
	f.values = values
	return nil
}

// Restore gives the sysctls their former values, by a handle on the node's
// namespace.
func (f *Former) Restore(h *link.Handle) error {
	if err := f.read(); err != nil {
		return err
	}
	if f.lost != nil {
		return f.lost
	}
	var paths []string
	for path := range f.values {
		paths = append(paths, path)
	}
	have, err := h.Read(paths...)
	if err != nil {
		return err
	}
	now, want := link.NewState(), link.NewState()
	for path, value := range f.values {
		if _, exists := have.Sysctls[path]; exists {
			now.Sysctls[path], want.Sysctls[path] = have.Sysctls[path], value
		}
	}
	return h.Apply(link.Diff(now, want))
}

// writeFile writes in one step, and to the disk before the file has its name.
func writeFile(path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	fresh, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = fresh.Write(text)
	if err == nil {
		err = fresh.Sync()
	}
	if err = errors.Join(err, fresh.Close()); err != nil {
		return err
	}
	return os.Rename(fresh.Name(), path)
}
