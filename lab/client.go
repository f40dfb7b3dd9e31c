package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/podlane/podlane/cluster/file"
)

// Client asks the holder of a lab. It keeps no connection: each request makes
// its own, so a Client may be used by several goroutines.
type Client struct{ dir string }

// Stdio is what a process in the lab reads and writes. They are files, since
// their descriptors are handed over to the process; a nil one is /dev/null.
type Stdio struct{ In, Out, Err *os.File }

// AgentAction is what can be done to the nodes' agents.
type AgentAction string

// The actions: Stop ends an agent with SIGTERM and Kill with SIGKILL, both until
// Start.
const (
	AgentStop  AgentAction = "stop"
	AgentKill  AgentAction = "kill"
	AgentStart AgentAction = "start"
)

// ErrNoLab says that no lab of that name is up.
var ErrNoLab = errors.New("no such lab")

// Dial gives the client of a lab that is up.
func Dial(name string) (*Client, error) {
	dir, err := Dir(name)
	if err != nil {
		return nil, err
	}
	c := &Client{dir}
	conn, err := c.connect()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: %s (looked in %s; `podlane lab up` starts one)", ErrNoLab, name, dir)
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w: %s: its holder is gone (`podlane lab down` clears %s)", ErrNoLab, name, dir)
	case err != nil:
		return nil, err
	}
	return c, conn.Close()
}

// Dir is the lab's folder.
func (c *Client) Dir() string { return c.dir }

func (c *Client) connect() (*net.UnixConn, error) {
	return net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: filepath.Join(c.dir, "lab.sock")})
}

// ask sends a request and gives the last reply. When ctx ends, the connection is
// closed: the holder then drops what it does for this request.
func (c *Client) ask(ctx context.Context, req request, progress func(string)) (reply, error) {
	conn, err := c.connect()
	if err != nil {
		return reply{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := sendRequest(conn, req, nil); err != nil {
		return reply{}, err
	}
	r, err := lastReply(json.NewDecoder(conn), progress)
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	return r, err
}

func lastReply(dec *json.Decoder, progress func(string)) (reply, error) {
	for {
		var r reply
		if err := dec.Decode(&r); err != nil {
			return r, fmt.Errorf("the lab ended before it answered: %w", err)
		}
		if r.Progress != "" && progress != nil {
			progress(r.Progress)
		}
		if !r.Done {
			continue
		}
		if r.Error != "" {
			return r, errors.New(r.Error)
		}
		return r, nil
	}
}

// Status gives the lab's state.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	r, err := c.ask(ctx, request{Verb: "status"}, nil)
	return r.Status, err
}

// Wait waits until all is Ready. It gives the state last seen also with an
// error, which names what is not Ready when ctx ends.
func (c *Client) Wait(ctx context.Context, progress func(string)) (*Status, error) {
	r, err := c.ask(ctx, request{Verb: "wait"}, progress)
	if err == nil || ctx.Err() == nil {
		return r.Status, err
	}
	st, stErr := c.Status(context.WithoutCancel(ctx))
	if stErr != nil {
		return nil, err
	}
	return st, fmt.Errorf("%w; not ready: %s", err, strings.Join(st.NotReady(), "; "))
}

// Apply adds or replaces objects. The lines name the objects of the lab that
// cannot be used as they are, and why; the others are in use.
func (c *Client) Apply(ctx context.Context, objects *file.Objects) (problems []string, err error) {
	r, err := c.ask(ctx, request{Verb: "apply", Objects: objects}, nil)
	return r.Problems, err
}

// Delete removes the objects of these kinds and names; one that is not there is
// no error.
func (c *Client) Delete(ctx context.Context, objects *file.Objects) error {
	_, err := c.ask(ctx, request{Verb: "delete", Objects: objects}, nil)
	return err
}

// Agents stops, kills or starts the agents of the nodes, of all without names.
// It comes back when they have ended, or are running again.
func (c *Client) Agents(ctx context.Context, action AgentAction, nodes ...string) error {
	_, err := c.ask(ctx, request{Verb: "agents", Agents: &agentsRequest{action, nodes}}, nil)
	return err
}

// Exec runs a command at a target: a pod ("curl", "default/curl", or the name of
// a Deployment for its first pod), "node/n1" or "outside". It gives the exit
// status as a shell does. When ctx ends, the process gets SIGINT, and SIGKILL if
// it is still there 2 s later.
func (c *Client) Exec(ctx context.Context, target string, argv []string, stdio Stdio) (int, error) {
	conn, err := c.connect()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	files := []*os.File{stdio.In, stdio.Out, stdio.Err}
	for i, f := range files {
		if f == nil {
			files[i] = null
		}
	}
	req := request{Verb: "exec", Exec: &execRequest{Target: target, Argv: argv, Env: termEnv()}}
	if err := sendRequest(conn, req, files); err != nil {
		return 0, err
	}
	defer context.AfterFunc(ctx, func() {
		_ = json.NewEncoder(conn).Encode(signalMessage{int(syscall.SIGINT)})
		time.AfterFunc(2*time.Second, func() { _ = conn.Close() })
	})()
	r, err := lastReply(json.NewDecoder(conn), nil)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return r.Code, err
}

func termEnv() []string {
	if t := os.Getenv("TERM"); t != "" {
		return []string{"TERM=" + t}
	}
	return nil
}

// Output is Exec without input that gives the standard output, and an error with
// the standard error where the exit status is not 0.
func (c *Client) Output(ctx context.Context, target string, argv ...string) (string, error) {
	out, err := newCapture()
	if err != nil {
		return "", err
	}
	errs, err := newCapture()
	if err != nil {
		_, _ = out.read()
		return "", err
	}
	code, err := c.Exec(ctx, target, argv, Stdio{Out: out.w, Err: errs.w})
	stdout, outErr := out.read()
	stderr, errErr := errs.read()
	if err == nil {
		err = errors.Join(outErr, errErr)
	}
	if err == nil && code != 0 {
		err = fmt.Errorf("%s: %s: exit status %d: %s", target, strings.Join(argv, " "), code, strings.TrimSpace(stderr))
	}
	return stdout, err
}

// capture collects what a process writes to a pipe.
type capture struct {
	r, w *os.File
	data chan []byte
}

func newCapture() (*capture, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c := &capture{r: r, w: w, data: make(chan []byte, 1)}
	go c.collect()
	return c, nil
}

func (c *capture) collect() {
	var all []byte
	buf := make([]byte, 32<<10)
	for {
		n, err := c.r.Read(buf)
		all = append(all, buf[:n]...)
		if err != nil {
			break
		}
	}
	c.data <- all
}

// read gives all that was written. A background process that the command left
// behind may still hold the pipe: after a second what is there is enough.
func (c *capture) read() (string, error) {
	_ = c.w.Close()
	_ = c.r.SetReadDeadline(time.Now().Add(time.Second))
	data := <-c.data
	return string(data), c.r.Close()
}

// Down ends the lab of that name and removes its folder, also when its holder
// was killed. That there is none is an error of ErrNoLab.
func Down(ctx context.Context, name string) error {
	dir, err := Dir(name)
	if err != nil {
		return err
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s (looked in %s)", ErrNoLab, name, dir)
	}
	return (&Client{dir}).Down(ctx)
}

// Down ends the lab and removes its folder. It comes back when all of it is
// gone.
func (c *Client) Down(ctx context.Context) error {
	for end := time.Now().Add(15 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		lock, err := lockDir(c.dir)
		switch {
		case err == nil:
			defer lock.Close()
			return removeDir(c.dir)
		case errors.Is(err, fs.ErrNotExist): // the holder has removed it
			_ = removeDir(c.dir)
			return nil
		case !errors.Is(err, errLocked) || time.Now().After(end):
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		c.end(ctx)
	}
}

// end asks the holder to end, and ends it where it does not answer; one that is
// only starting may be found neither way yet.
func (c *Client) end(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := c.ask(ctx, request{Verb: "down"}, nil); err != nil {
		killHolder(c.dir)
	}
}

// LogFile gives the file with the log of a pod, of "node/NAME" (its agent) or of
// the "holder". It may not exist yet.
func (c *Client) LogFile(ctx context.Context, target string) (string, error) {
	r, err := c.ask(ctx, request{Verb: "log", Exec: &execRequest{Target: target}}, nil)
	return r.Path, err
}
