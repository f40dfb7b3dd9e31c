package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
)

// asPlugin says that the program was started as `kubectl podlane`: its file is in the
// PATH by the name kubectl-podlane.
func asPlugin(name string) bool {
	return strings.TrimSuffix(filepath.Base(name), ".exe") == "kubectl-podlane"
}

// nodeVerbs are the verbs that look at a node from within: as a plugin they run in the
// node's agent.
var nodeVerbs = []string{"status", "counters", "doctor", "explain", "debug", "version"}

// kubectlRun is how kubectl is run for a verb.
type kubectlRun struct {
	args []string
	file string // that its output goes to, which must not exist; "" is stdout
}

// remote gives what kubectl is to do for a verb that runs on a node, or nil for one that
// runs here. --node NODE chooses the node; without it any is taken. --context is
// kubectl's.
func remote(args []string, podOf func(global []string, node string) (string, error)) (*kubectlRun, error) {
	args, context, err := take(args, "--context")
	if err != nil || len(args) == 0 || !slices.Contains(nodeVerbs, args[0]) {
		return nil, err
	}
	args, node, err := take(args, "--node")
	if err != nil {
		return nil, err
	}
	var k kubectlRun
	if len(args) > 1 && args[0] == "debug" && args[1] == "bundle" && !slices.Contains(args, "--help") && !slices.Contains(args, "-h") {
		if args, k.file, err = bundleFile(args); err != nil {
			return nil, err
		}
	}
	var global []string
	if context != "" {
		global = []string{"--context", context}
	}
	pod := "daemonset/podlane-agent"
	if node != "" {
		if pod, err = podOf(global, node); err != nil {
			return nil, err
		}
	}
	k.args = slices.Concat(global, []string{"-n", "podlane", "exec", pod, "-c", "agent", "--", "/podlane"}, args)
	return &k, nil
}

// bundleFile has the agent write to stdout, and gives the file that is meant, which is
// one of the user's: an agent's pod has none that could be written.
func bundleFile(args []string) (rest []string, file string, err error) {
	if rest, file, err = take(args, "--output"); err == nil && file == "" {
		rest, file, err = take(args, "-o")
	}
	switch file {
	case "":
		file = bundleName
	case "-":
		file = ""
	}
	return append(rest, "-o", "-"), file, err
}

// take takes a flag and its value out of the arguments. What follows "--" is not ours.
func take(args []string, flag string) (rest []string, value string, err error) {
	for i := 0; i < len(args); i++ {
		v, is := strings.CutPrefix(args[i], flag+"=")
		if !is && len(flag) == len("-o") { // -oFILE
			v, is = strings.CutPrefix(args[i], flag)
		}
		switch {
		case args[i] == "--":
			return append(rest, args[i:]...), value, nil
		case args[i] == flag:
			if i++; i == len(args) {
				return nil, "", fmt.Errorf("%s wants a value", flag)
			}
			v, is = args[i], true
		}
		if !is {
			rest = append(rest, args[i])
			continue
		}
		if v == "" {
			return nil, "", fmt.Errorf("%s wants a value", flag)
		}
		value = v
	}
	return rest, value, nil
}

// agentPod asks kubectl for a node's agent.
func agentPod(global []string, node string) (string, error) {
	out, err := exec.Command("kubectl", append(global, "-n", "podlane", "get", "pods", "-l", "app.kubernetes.io/component=agent",
		"--field-selector", "spec.nodeName="+node, "-o", "name")...).Output()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(failed.Stderr)))
	}
	if err != nil {
		return "", fmt.Errorf("kubectl get pods: %w", err)
	}
	pod := strings.TrimSpace(string(out))
	if pod == "" || strings.Contains(pod, "\n") {
		return "", fmt.Errorf("node %s: it has no Podlane agent, or there is no such node", node)
	}
	return pod, nil
}

// run runs kubectl. A file that it fails to fill is removed, also after Ctrl-C, which
// ends kubectl too.
func (k *kubectlRun) run() error {
	cmd := exec.Command("kubectl", k.args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if k.file == "" {
		return cmd.Run()
	}
	signal.Notify(make(chan os.Signal, 1), os.Interrupt) // not Ignore, which kubectl would inherit
	f, err := os.OpenFile(k.file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s exists: choose another by -o", k.file)
	}
	if err != nil {
		return err
	}
	cmd.Stdout = f
	if err := errors.Join(cmd.Run(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(k.file))
	}
	return nil
}

// plugin runs a verb on a node, and says whether it was one of those.
func plugin(args []string) (status int, is bool) {
	k, err := remote(args, agentPod)
	if k == nil && err == nil {
		return 0, false
	}
	if err == nil {
		err = k.run()
	}
	var failed *exec.ExitError
	switch {
	case err == nil:
		return 0, true
	case errors.As(err, &failed):
		return failed.ExitCode(), true // kubectl has said why
	}
	fmt.Fprintln(os.Stderr, "kubectl podlane:", err)
	return 1, true
}
