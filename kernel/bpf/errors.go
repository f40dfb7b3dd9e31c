package bpf

import "errors"

// ErrUnavailable says that this kernel, or what this process may do, has no place
// for the fast path. The text says what is missing.
var ErrUnavailable = errors.New("the fast path is not available")
