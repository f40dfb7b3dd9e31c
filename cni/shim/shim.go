// Package shim is the CNI plugin that a container runtime executes: it hands the
// runtime's request, with descriptors of the pod's network namespace, to the
// node's agent over a unix socket and prints the agent's answer. It changes no
// network and keeps no state; that is package cni, in the agent.
//
// It is started once for every pod that comes or goes, so it stays small: no
// package net, no flags, no logging.
package shim

import (
	"encoding/json"
	"io"
	"os"
	"time"
)

// supported are the versions of the CNI specification, as the cni library
// converts results to them.
var supported = []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// The bounds of one start of the plugin. The agent's answer to an ADD waits for
// its kernel writes; at a first start those may take seconds.
const (
	agentTimeout = 30 * time.Second
	wholeTimeout = agentTimeout + 5*time.Second
)

// config is what the plugin itself reads of the network configuration.
type config struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	Type       string `json:"type"`
	Socket     string `json:"socket"`
}

// Called says whether the process was started as a CNI plugin, which is told by
// the environment alone.
func Called() bool { return os.Getenv("CNI_COMMAND") != "" }

// Main is the plugin: it reads the request from the environment and stdin,
// writes the answer to stdout and gives the exit status. It returns after at
// most 35 seconds, whatever stdin, the namespace's file or the agent do.
func Main(getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) int {
	switch getenv("CNI_COMMAND") {
	case "":
		_, _ = io.WriteString(stderr, "podlane-cni is a CNI plugin: the container runtime starts it, with CNI_COMMAND set\n")
		return 1
	case "VERSION":
		return write(stdout, map[string]any{"cniVersion": supported[len(supported)-1], "supportedVersions": supported}, 0)
	}
	return bounded(&call{getenv: getenv}, stdin, stdout, wholeTimeout)
}

// answer is what a call ended with.
type answer struct {
	result json.RawMessage
	err    *Error
}

// bounded runs the call and prints its answer, or an error when it takes too
// long.
func bounded(c *call, stdin io.Reader, stdout io.Writer, limit time.Duration) int {
	done := make(chan answer, 1)
	go c.run(stdin, done)
	var a answer
	select {
	case a = <-done:
	case <-time.After(limit):
		a.err = &Error{Code: CodeTryAgain, Msg: "podlane-cni: no end after " + limit.String()}
		return write(stdout, printed{supported[len(supported)-1], *a.err}, 1)
	}
	if a.err != nil {
		return write(stdout, printed{c.conf.CNIVersion, *a.err}, 1)
	}
	if len(a.result) == 0 {
		return 0
	}
	return write(stdout, a.result, 0)
}

// printed is an error as the specification wants it on standard output.
type printed struct {
	CNIVersion string `json:"cniVersion"`
	Error
}

func write(w io.Writer, document any, status int) int {
	text, err := json.Marshal(document)
	if err == nil {
		_, err = w.Write(append(text, '\n'))
	}
	if err != nil {
		return 1
	}
	return status
}
