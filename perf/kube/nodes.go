package kube

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// ErrNoSecondNode is a cluster where the two ends would be on one node.
var ErrNoSecondNode = errors.New("no second node to measure to (--to NODE, or --from and --to the same for both ends on one)")

// pick chooses the two nodes: those asked for, or the first two that are fit, workers before control planes.
// A node that was asked for must be fit too.
func pick(nodes []corev1.Node, from, to string) (string, string, error) {
	var fit []corev1.Node
	why := map[string]string{}
	for _, n := range nodes {
		if reason := unfit(n); reason != "" {
			why[n.Name] = reason
			continue
		}
		fit = append(fit, n)
	}
	slices.SortStableFunc(fit, func(a, b corev1.Node) int {
		return cmp.Or(cmp.Compare(tainted(a), tainted(b)), cmp.Compare(a.Name, b.Name))
	})
	for _, name := range []string{from, to} {
		if name == "" {
			continue
		}
		if reason, ok := why[name]; ok {
			return "", "", fmt.Errorf("node %s: %s", name, reason)
		}
		if !slices.ContainsFunc(fit, func(n corev1.Node) bool { return n.Name == name }) {
			return "", "", fmt.Errorf("node %s: no such node", name)
		}
	}
	for _, n := range fit {
		switch {
		case from == "" && n.Name != to:
			from = n.Name
		case to == "" && n.Name != from:
			to = n.Name
		}
	}
	switch {
	case len(fit) == 0 && len(why) > 0:
		return "", "", fmt.Errorf("no node is fit to measure on: %s", reasons(why))
	case (from == "" || to == "") && len(why) > 0:
		return "", "", fmt.Errorf("%w; passed over: %s", ErrNoSecondNode, reasons(why))
	case from == "" || to == "":
		return "", "", ErrNoSecondNode
	}
	return from, to, nil
}

func reasons(why map[string]string) string {
	var lines []string
	for node, reason := range why {
		lines = append(lines, node+" "+reason)
	}
	slices.Sort(lines)
	text := ""
	for i, l := range lines {
		if i > 0 {
			text += ", "
		}
		text += l
	}
	return text
}

// unfit is why a node cannot be measured on; empty where it can.
func unfit(n corev1.Node) string {
	if n.Spec.Unschedulable {
		return "is cordoned"
	}
	if os := n.Labels[corev1.LabelOSStable]; os != "" && os != "linux" {
		return "runs " + os
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return ""
		}
	}
	return "is not Ready"
}

// tainted is 1 for a node that ordinary pods stay away from.
func tainted(n corev1.Node) int {
	for _, t := range n.Spec.Taints {
		if t.Effect != corev1.TaintEffectPreferNoSchedule {
			return 1
		}
	}
	return 0
}
