package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/podlane/podlane/lab"
)

// StartGuard starts the process that takes the labs down should this one be killed. It runs
// `argv`, which must call Guard; it ends by itself when this process does, or, with nothing to do, when stop is called.
func StartGuard(argv []string) (stop func(), err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = r
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // not to be reached by the terminal's Ctrl-C
	err = cmd.Start()
	_ = r.Close()
	if err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("guard: %w", err)
	}
	return func() { _, _ = w.WriteString("done\n"); _ = w.Close(); _ = cmd.Wait() }, nil
}

// Guard waits for the end of its input, which is the end of the process that started it, and takes
// down what labs of these names there are. One that is only just starting may show late.
func Guard(ctx context.Context, in io.Reader, names []string) error {
	if last, err := io.ReadAll(in); err == nil && len(last) > 0 {
		return nil // the process ended in order, and has cleaned up itself
	}
	var errs []error
	for _, name := range names {
		quiet := 0
		for end := time.Now().Add(20 * time.Second); quiet < 3 && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			err := lab.Down(ctx, name)
			switch {
			case errors.Is(err, lab.ErrNoLab):
				quiet++
			case err != nil:
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
