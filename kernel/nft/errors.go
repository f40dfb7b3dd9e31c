package nft

import (
	"errors"
	"fmt"
)

// ErrTooBig is a transaction that does not fit into the socket's send buffer,
// which without root is some 400 KB. Nothing of it was done.
var ErrTooBig = errors.New("transaction larger than the send buffer")

// ErrUncertain is a transaction whose acknowledgement was lost: it may have been
// done or not. Read the table back.
var ErrUncertain = errors.New("acknowledgement lost")

// Error is the kernel's refusal of an operation, with which the whole
// transaction was undone.
type Error struct {
	Op  string // "create 3 elements of ip podlane-1 services (10.0.0.1 . tcp . 80)"
	Msg string // what the kernel adds in words; mostly nothing
	Err error  // the errno
}

func (e *Error) Error() string {
	if e.Msg != "" {
		return fmt.Sprintf("nft %s: %v (%s)", e.Op, e.Err, e.Msg)
	}
	return fmt.Sprintf("nft %s: %v", e.Op, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }
