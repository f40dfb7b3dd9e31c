package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// exitError ends the program with a status of its own; its message, where it has
// one, is printed like any other error's.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// run is the whole program: it gives the exit status.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args[1:])
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if err.Error() != "" {
		fmt.Fprintln(stderr, "podlane:", err)
	}
	var exit *exitError
	if errors.As(err, &exit) {
		return exit.code
	}
	return 1
}

// newRoot makes the command tree. Each verb has a file of its own.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "podlane",
		Short:         "A Kubernetes cluster network in one binary, which explains and measures itself",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(newAgent(), newCounters(), newDebug(), newDNS(), newDoctor(), newExplain(), newLabAndMore(), newObserve(), newPerf(), newPlan(), newStatus(), newTakeover(), newVersion(), newWait())
	return root
}

// flagError says what a flag wants, where Go would say which of its functions refused
// the value.
func flagError(_ *cobra.Command, err error) error {
	var value *pflag.InvalidValueError
	var number *strconv.NumError
	if !errors.As(err, &value) || !errors.As(err, &number) {
		return err
	}
	want := "a number"
	switch {
	case number.Func == "ParseBool":
		want = "true or false"
	case errors.Is(number, strconv.ErrRange):
		want = "a number of type " + value.GetFlag().Value.Type()
	}
	return fmt.Errorf("--%s %q: want %s", value.GetFlag().Name, value.GetValue(), want)
}
