package cni

import (
	"os"
	"path/filepath"
)

// spareFiles is how many records are written without making a file for each: those
// of one batch.
const spareFiles = maxBatch

// spares are empty files in the record's folder that wait to become records. To make a
// file takes the kernel longer than all else of a record, and the longer the more have
// been removed lately. So they are made while no pod waits. Their names are those of
// files that are being written: no version of the agent takes them for records, and what
// a kill leaves of one goes at the next start.
type spares struct {
	dir   string
	names []string
}

// fill makes what is missing. Where that fails, take makes its file itself.
func (s *spares) fill() {
	for len(s.names) < spareFiles {
		f, err := os.CreateTemp(s.dir, temporary)
		if err != nil {
			return
		}
		s.names = append(s.names, f.Name())
		_ = f.Close()
	}
}

// find takes what an agent before this one left: an empty file is a spare one, and what
// was being written goes.
func (s *spares) find(name string) error {
	path := filepath.Join(s.dir, name)
	if info, err := os.Stat(path); err != nil || info.Size() > 0 || len(s.names) >= spareFiles {
		return os.Remove(path)
	}
	s.names = append(s.names, path)
	return nil
}

// take gives an empty file of a temporary name.
func (s *spares) take() (*os.File, error) {
	for len(s.names) > 0 {
		last := len(s.names) - 1
		name := s.names[last]
		s.names = s.names[:last]
		if f, err := os.OpenFile(name, os.O_WRONLY, 0); err == nil {
			return f, nil
		}
	}
	return os.CreateTemp(s.dir, temporary)
}
