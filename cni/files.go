package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/podlane/podlane/kernel/link"
)

// temporary begins the names of files that are being written.
const temporary = ".new-"

// cursorFile remembers where the search for a free address goes on, so that an
// agent's restart does not give out again what was released before it.
const cursorFile = "cursors.json"

// writeFile replaces a file in one step. With durable, its content is on the
// disk before it has its name.
func writeFile(path string, text []byte, mode os.FileMode, durable bool) error {
	f, err := os.CreateTemp(filepath.Dir(path), temporary)
	if err != nil {
		return err
	}
	return finish(f, path, text, mode, durable)
}

// finish writes an empty file of a temporary name and gives it its own.
func finish(f *os.File, path string, text []byte, mode os.FileMode, durable bool) error {
	_, err := f.Write(text)
	err = errors.Join(err, f.Chmod(mode))
	if durable && err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// cursors is the document of cursorFile.
type cursors struct {
	Version int                         `json:"version"`
	Last    map[netip.Prefix]netip.Addr `json:"last"`
}

// saveCursors writes in place. A file that takes another's name has to go to the disk at
// once (ext4's auto_da_alloc), which costs more than all else of a pod's record; and a hint
// may be lost by a crash.
func (r *Record) saveCursors(last map[netip.Prefix]netip.Addr) error {
	text, err := json.Marshal(cursors{recordVersion, last})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(r.dir, cursorFile), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	n, err := f.Write(append(text, '\n'))
	return errors.Join(err, f.Truncate(int64(n)), f.Close())
}

// loadCursors gives nothing where the file is missing or broken: it is a hint.
func (r *Record) loadCursors() map[netip.Prefix]netip.Addr {
	var c cursors
	text, err := os.ReadFile(filepath.Join(r.dir, cursorFile))
	if err != nil || json.Unmarshal(text, &c) != nil {
		return nil
	}
	return c.Last
}

// parseMAC reads what link.MAC's String writes.
func parseMAC(text string, mac *link.MAC) error {
	m := mac[:]
	n, err := fmt.Sscanf(text, "%02x:%02x:%02x:%02x:%02x:%02x", &m[0], &m[1], &m[2], &m[3], &m[4], &m[5])
	if err != nil || n != len(m) {
		return fmt.Errorf("MAC %q", text)
	}
	return nil
}
