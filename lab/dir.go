package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// DefaultName is the name of a lab that was given none.
const DefaultName = "lab"

var labName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// Dir gives the folder of the lab of that name: below $XDG_RUNTIME_DIR where
// that is a folder of the caller's, else below /tmp/podlane-UID.
func Dir(name string) (string, error) {
	if !labName.MatchString(name) {
		return "", fmt.Errorf("lab name %q: want at most 32 of a-z, 0-9 and '-', and no '-' at the ends", name)
	}
	base := filepath.Join(os.TempDir(), "podlane-"+strconv.Itoa(os.Getuid()))
	if xdg := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(xdg) && owned(xdg) == nil {
		base = filepath.Join(xdg, "podlane")
	}
	return filepath.Join(base, "lab", name), nil
}

// owned checks that the folder is the caller's and no link: the temporary
// folder is everybody's.
func owned(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || !ok || int(st.Uid) != os.Getuid() {
		return fmt.Errorf("%s: not a folder of user %d", dir, os.Getuid())
	}
	return nil
}

// makeDir makes the folder of a new lab and locks it. The lock belongs to the
// open folder, which the holder inherits: so long as it is held, the lab lives.
func makeDir(dir string) (*os.File, error) {
	base := filepath.Dir(filepath.Dir(dir))
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return nil, err
	}
	if err := owned(base); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	removeCgroups(dir)
	if err := emptyDir(dir); err != nil { // what a killed holder left
		_ = lock.Close()
		return nil, err
	}
	return lock, nil
}

var errLocked = errors.New("in use")

// lockDir gives the folder, open and locked, or errLocked where a lab lives in
// it.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	_ = f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errLocked
	}
	return nil, fmt.Errorf("%s: %w", dir, err)
}

func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// removeDir removes a lab's folder and the folders above it that only labs
// use, as far as they are empty.
func removeDir(dir string) error {
	removeCgroups(dir)
	err := os.RemoveAll(dir)
	for parent, n := filepath.Dir(dir), 0; n < 2; parent, n = filepath.Dir(parent), n+1 {
		if os.Remove(parent) != nil {
			break
		}
	}
	return err
}

// Names gives the names of the labs that are up, or were before their holder
// was killed.
func Names() ([]string, error) {
	dir, err := Dir(DefaultName)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// tail gives the last lines of a file, for an error message.
func tail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	all := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
