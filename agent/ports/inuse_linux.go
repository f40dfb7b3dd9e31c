package ports

import (
	"errors"
	"syscall"
)

// inUse says that someone else has the port.
func inUse(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }
