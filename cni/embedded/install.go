// Package embedded holds the built CNI plugin (cmd/podlane-cni) inside podlane,
// where the build tag embedshim is set, and writes it where a container runtime
// looks for it. It is not the plugin itself; that is package shim.
package embedded

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// name is the plugin's file in the runtime's folder.
const name = "podlane-cni"

// Embedded says whether this build has the plugin inside.
func Embedded() bool { return len(shim) > 0 }

// Install puts the plugin into the runtime's plugin folder (/opt/cni/bin) in one
// step, so that a runtime that starts it meanwhile has the old or the new one,
// and gives its path. A file that is the same already is left alone. A build
// without the plugin installs a link to, or a copy of, the running program:
// slower to start (package shim's Called tells it what it is), and right.
func Install(dir string) (path string, err error) {
	path = filepath.Join(dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("CNI plugin: %w", err)
	}
	if Embedded() {
		err = installBytes(path, shim)
	} else {
		err = installSelf(path)
	}
	if err != nil {
		return "", fmt.Errorf("CNI plugin %s: %w", path, err)
	}
	return path, nil
}

func installBytes(path string, text []byte) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, text) {
		return os.Chmod(path, 0o755)
	}
	return replace(path, func(f *os.File) error {
		_, err := f.Write(text)
		return err
	})
}

// installSelf links where the folder is on the program's file system.
func installSelf(path string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if os.Link(self, fresh) == nil {
		// Rename does nothing, and leaves both names, where they are one file.
		return errors.Join(os.Rename(fresh, path), removeIfThere(fresh))
	}
	return replace(path, func(f *os.File) error {
		program, err := os.Open(self)
		if err != nil {
			return err
		}
		defer program.Close()
		_, err = io.Copy(f, program)
		return err
	})
}

// replace writes beside and renames. The file is synced: a half plugin after a
// crash of the machine would keep every pod from starting.
func replace(path string, write func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+name+"-")
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = errors.Join(f.Chmod(0o755), f.Sync())
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = removeIfThere(f.Name())
	}
	return err
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
