package shim

import (
	"encoding/json"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// call is one request of the runtime.
type call struct {
	getenv func(string) string
	conf   config
	req    Request
}

// run does the call and sends its one answer. It is a goroutine of its own so
// that Main can stop waiting for it.
func (c *call) run(stdin io.Reader, done chan<- answer) {
	if err := c.read(stdin); err != nil {
		done <- answer{err: err}
		return
	}
	if c.conf.Type == loopbackType {
		done <- c.loopback()
		return
	}
	fds, err := c.descriptors()
	if err != nil {
		done <- answer{err: err}
		return
	}
	reply, askErr := Ask(c.conf.Socket, c.req, agentTimeout, fds...)
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
	if askErr != nil {
		done <- answer{err: c.away(askErr)}
		return
	}
	done <- answer{result: reply.Result, err: reply.Error}
}

// read fills the request from the environment and standard input.
func (c *call) read(stdin io.Reader) *Error {
	c.req = Request{
		Verb: VerbCNI, Command: c.getenv("CNI_COMMAND"), ContainerID: c.getenv("CNI_CONTAINERID"),
		IfName: c.getenv("CNI_IFNAME"), Netns: c.getenv("CNI_NETNS"), Args: c.getenv("CNI_ARGS"),
	}
	text, err := io.ReadAll(io.LimitReader(stdin, MaxDocument/2))
	if err != nil {
		return &Error{CodeIO, "standard input", err.Error()}
	}
	if err := json.Unmarshal(text, &c.conf); err != nil {
		return &Error{CodeDecode, "network configuration", err.Error()}
	}
	if c.conf.Name == "" {
		return &Error{CodeConfig, "network configuration", `missing key "name"`}
	}
	if c.conf.Socket == "" {
		c.conf.Socket = DefaultSocket
	}
	c.req.Config = text
	return c.missing()
}

// missing names the environment variables that the command needs and that are
// not set.
func (c *call) missing() *Error {
	container, namespace := false, false
	switch c.req.Command {
	case "ADD", "CHECK":
		container, namespace = true, true
	case "DEL":
		container = true
	case "GC", "STATUS":
	default:
		return &Error{CodeEnvironment, "CNI_COMMAND", "unknown command " + c.req.Command}
	}
	var names string
	need := func(wanted bool, name, value string) {
		if wanted && value == "" {
			names += " " + name
		}
	}
	need(container, "CNI_CONTAINERID", c.req.ContainerID)
	need(container, "CNI_IFNAME", c.req.IfName)
	need(namespace, "CNI_NETNS", c.req.Netns)
	if names != "" {
		return &Error{CodeEnvironment, "environment variables not set:" + names, ""}
	}
	return nil
}

// descriptors opens what the agent needs to reach into the pod. DEL needs
// nothing: with the host's end the pod's end goes.
func (c *call) descriptors() ([]int, *Error) {
	if c.req.Command != "ADD" && c.req.Command != "CHECK" {
		return nil, nil
	}
	namespace, socket, err := openNamespace(c.req.Netns)
	if err != nil {
		return nil, &Error{CodeEnvironment, "CNI_NETNS " + c.req.Netns, err.Error()}
	}
	return []int{namespace, socket}, nil
}

// away is the answer when the agent gave none. DEL succeeds: the agent collects
// at its next start what has no link any more, and a runtime that could not
// delete a pod would hold it for ever.
func (c *call) away(err error) *Error {
	hint := "the podlane agent of this node does not answer"
	if errors.Is(err, os.ErrPermission) {
		hint = "the podlane agent's socket is for root alone"
	}
	e := &Error{Code: CodeTryAgain, Msg: hint, Details: c.conf.Socket + ": " + err.Error()}
	switch c.req.Command {
	case "DEL":
		return nil
	case "STATUS": // the specification's code for "no ADD can be served"
		e.Code = CodeNotAvailable
	}
	return e
}
