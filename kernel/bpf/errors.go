package bpf

import (
	"errors"
	"fmt"
)

// ErrUnavailable says that this kernel, or what this process may do, has no place
// for the fast path. The text says what is missing.
var ErrUnavailable = errors.New("the fast path is not available")

// ErrRefused is an ErrUnavailable where nothing is missing that we know of: it is a fault of the
// programs, or of the kernel.
var ErrRefused = fmt.Errorf("%w: the kernel refuses it", ErrUnavailable)
