// Package podexec talks to a running container through the API server, as kubectl's exec and attach do.
package podexec

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
)

// Open makes what streams to the URL of a pod's exec or attach. It asks nothing of the server.
func Open(c *rest.Config, at *url.URL) (remotecommand.Executor, error) {
	spdy, err := remotecommand.NewSPDYExecutor(c, http.MethodPost, at)
	if err != nil {
		return nil, err
	}
	ws, err := remotecommand.NewWebSocketExecutor(c, http.MethodGet, at.String())
	if err != nil {
		return nil, err
	}
	// An API server of before 1.31, and some proxies, speak SPDY only, and a server that refuses says why in SPDY
	// alone. A command that failed is not run again.
	return remotecommand.NewFallbackExecutor(ws, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
}

// Output runs the command and gives what it prints; of one that failed, said is what it wrote to its standard error. Where
// ctx ends first the connection is closed: a command that reads its standard input sees the end of it.
func Output(ctx context.Context, e remotecommand.Executor, stdin io.Reader) (out []byte, said string, err error) {
	var stdout, stderr bytes.Buffer
	if err = e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: &stdout, Stderr: &stderr}); err != nil {
		said = strings.TrimPrefix(strings.TrimSpace(stderr.String()), "podlane: ")
	}
	return stdout.Bytes(), said, err
}
