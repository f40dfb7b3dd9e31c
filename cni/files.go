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
	_, err = f.Write(text)
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

func (r *Record) saveCursors(last map[netip.Prefix]netip.Addr) error {
	text, err := json.Marshal(cursors{recordVersion, last})
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(r.dir, cursorFile), append(text, '\n'), 0o600, false)
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
