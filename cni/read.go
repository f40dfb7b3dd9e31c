package cni

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// ReadRecord reads the allocations of a record's folder and touches nothing there,
// so that it may be called beside the agent that owns it. A folder that does not
// exist has none; files that are not whole records are errors beside the others.
func ReadRecord(dir string) ([]Allocation, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("allocation record: %w", err)
	}
	var all []Allocation
	var errs []error
	for _, e := range entries {
		name := e.Name()
		if !strings.HasSuffix(name, ".json") || name == cursorFile || strings.HasPrefix(name, temporary) {
			continue
		}
		a, err := readAllocation(filepath.Join(dir, name))
		switch {
		case errors.Is(err, os.ErrNotExist): // just gone
		case err != nil:
			errs = append(errs, fmt.Errorf("allocation record %s: %w", name, err))
		default:
			all = append(all, a)
		}
	}
	return all, errors.Join(errs...)
}
