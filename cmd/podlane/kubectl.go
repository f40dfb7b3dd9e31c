package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
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

// remote gives the command line of kubectl for a verb that runs on a node, or nil for
// one that runs here. --node NODE chooses the node; without it any is taken.
func remote(args []string, podOf func(node string) (string, error)) ([]string, error) {
	if len(args) == 0 || !slices.Contains(nodeVerbs, args[0]) {
		return nil, nil
	}
	pod, rest := "daemonset/podlane-agent", []string{}
	for i := 0; i < len(args); i++ {
		node, is := strings.CutPrefix(args[i], "--node=")
		switch {
		case args[i] == "--": // what follows is not ours
			rest = append(rest, args[i:]...)
			i = len(args)
			continue
		case args[i] == "--node":
			if i++; i == len(args) {
				return nil, errors.New("--node wants the name of a node")
			}
			node, is = args[i], true
		}
		if !is {
			rest = append(rest, args[i])
			continue
		}
		var err error
		if pod, err = podOf(node); err != nil {
			return nil, err
		}
	}
	return append([]string{"-n", "podlane", "exec", pod, "-c", "agent", "--", "/podlane"}, rest...), nil
}

// agentPod asks kubectl for a node's agent.
func agentPod(node string) (string, error) {
	out, err := exec.Command("kubectl", "-n", "podlane", "get", "pods", "-l", "app.kubernetes.io/component=agent",
		"--field-selector", "spec.nodeName="+node, "-o", "name").Output()
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

// plugin runs a verb on a node, and says whether it was one of those.
func plugin(args []string) (status int, is bool) {
	line, err := remote(args, agentPod)
	if line == nil && err == nil {
		return 0, false
	}
	if err == nil {
		cmd := exec.Command("kubectl", line...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		err = cmd.Run()
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
