package conntrack

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

const (
	sysctlDir = "/proc/sys/net/netfilter/"
	hashSize  = "/sys/module/nf_conntrack/parameters/hashsize"
)

// Setting is a file that was raised.
type Setting struct {
	Path     string `json:"path"`
	Was, Now int
}

// Raise raises what is lower than the limits, and lowers nothing. What cannot be
// written here (a namespace that shares the machine's table, a read-only /proc)
// is left out without an error: those settings are the machine's. The former
// values are kept in file before the first is changed, the oldest one of each, so
// that Restore finds them after any number of starts.
func (l Limits) Raise(file string) ([]Setting, error) {
	var raised []Setting
	dir := sysctlDir
	if l.ProcSys != "" {
		dir = filepath.Join(l.ProcSys, "net/netfilter") + "/"
	}
	most := dir + "nf_conntrack_max"
	want := map[string]int{most: l.Max, hashSize: l.HashSize}
	for name, seconds := range l.Timeouts {
		want[dir+name] = seconds
	}
	for _, path := range slices.Sorted(maps.Keys(want)) {
		was, err := readInt(path)
		if err != nil || was >= want[path] || was == 0 && path == most {
			continue // a maximum of 0 is none
		}
		if !writable(path) {
			continue
		}
		s := Setting{Path: path, Was: was, Now: want[path]}
		if err := keep(file, s); err != nil {
			return raised, err
		}
		if err := writeInt(path, s.Now); err != nil {
			if denied(err) {
				continue
			}
			return raised, fmt.Errorf("conntrack limits: %w", err)
		}
		raised = append(raised, s)
	}
	return raised, nil
}

// Restore writes back what Raise raised, where it still has the raised value, and
// forgets it. A file that is not there is no error.
func Restore(file string) error {
	kept, err := kept(file)
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range kept {
		if now, err := readInt(s.Path); err != nil || now != s.Now {
			continue // someone else has set it since
		}
		if err := writeInt(s.Path, s.Was); err != nil && !denied(err) {
			errs = append(errs, fmt.Errorf("conntrack limits: %w", err))
		}
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// ReadLevel reads how full the table is.
func ReadLevel() (Level, error) {
	count, err := readInt(sysctlDir + "nf_conntrack_count")
	if err != nil {
		return Level{}, err
	}
	most, err := readInt(sysctlDir + "nf_conntrack_max")
	return Level{count, most}, err
}

// keep notes a former value, unless an older one is on record.
func keep(file string, s Setting) error {
	all, err := kept(file)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(o Setting) bool { return o.Path == s.Path })
	switch {
	case i < 0:
		all = append(all, s)
	case all[i].Now == s.Now:
		return nil
	default:
		all[i].Now = s.Now
	}
	data, err := json.Marshal(all)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("conntrack limits: %w", err)
	}
	temporary := file + ".new"
	if err := os.WriteFile(temporary, data, 0o600); err != nil {
		return fmt.Errorf("conntrack limits: %w", err)
	}
	return os.Rename(temporary, file)
}

func kept(file string) ([]Setting, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("conntrack limits: %w", err)
	}
	var all []Setting
	if json.Unmarshal(data, &all) != nil { // a crash of the machine, whose values are gone with it
		return nil, os.Rename(file, file+".bad")
	}
	return all, nil
}

// writable asks before anything is noted as changed.
func writable(path string) bool {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return false
	}
	return f.Close() == nil
}

func denied(err error) bool {
	for _, e := range []error{fs.ErrPermission, syscall.EROFS, syscall.EOPNOTSUPP, syscall.EINVAL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func readInt(path string) (int, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

func writeInt(path string, n int) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strconv.Itoa(n))
	return errors.Join(err, f.Close())
}
