package machines

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// patience is how long a program may take until it answers, on a busy machine.
const patience = 3 * time.Minute

// Process is a program of the cluster that runs.
type Process struct {
	Log   string // the file with what it prints
	cmd   *exec.Cmd
	ended chan struct{}
}

// start starts a program with its output appended to DIR/NAME.log. It dies with
// the cluster.
func start(dir, name string, command []string) (*Process, error) {
	p := &Process{Log: filepath.Join(dir, name+".log"), ended: make(chan struct{})}
	f, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p.cmd = exec.Command(command[0], command[1:]...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, f, f
	// A signal of the terminal is for this program, which then ends the others.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	go func() {
		_ = p.cmd.Wait() // how it ended is in its log
		close(p.ended)
	}()
	return p, nil
}

// Kill ends the program without warning.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// Stop asks the program to end, and gives what it printed.
func (p *Process) Stop(ctx context.Context) (string, error) {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-ctx.Done():
		p.Kill()
	}
	text, err := os.ReadFile(p.Log)
	return string(text), err
}

// await waits until is gives no error, or the program ends.
func (p *Process) await(ctx context.Context, is func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := errors.New("not asked")
	for ctx.Err() == nil {
		select {
		case <-p.ended:
			return fmt.Errorf("%s ended: %s", p.cmd.Path, tail(p.Log))
		case <-time.After(50 * time.Millisecond):
		}
		if err = is(ctx); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%s does not answer: %w: %s", p.cmd.Path, err, tail(p.Log))
}

func tail(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-3000):])
}

// get asks a URL for status 200.
func get(ctx context.Context, client *http.Client, url, token string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, text)
	}
	return err
}

// sh runs a short program and gives its output.
func sh(ctx context.Context, name string, args ...string) (string, error) {
	var out, errs strings.Builder
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s%s", name, strings.Join(args, " "), err, errs.String(), out.String())
	}
	return out.String(), nil
}
