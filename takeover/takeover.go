// Package takeover is how a node's Services change hands: it tells whether
// kube-proxy serves them, and removes what kube-proxy left in the kernel. It
// never touches rules of anyone else, kubelet's KUBE- chains included, and puts
// none of ours in: the agent does.
package takeover

import (
	"fmt"
	"strings"
)

// Mode is who the node's Services are wanted to be served by.
type Mode string

// The modes.
const (
	Auto Mode = "auto" // by us, unless kube-proxy is here
	On   Mode = "on"   // by us, whoever else is here
	Off  Mode = "off"  // by someone else
)

// ParseMode reads the flag --service-proxy.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case Auto, On, Off:
		return m, nil
	}
	return "", fmt.Errorf("--service-proxy %q: want auto, on or off", s)
}

// Evidence is what there is of kube-proxy on a node.
type Evidence struct {
	// Rules are its objects in the kernel: "nftables table ip kube-proxy",
	// "iptables chain KUBE-SERVICES of table ip nat", ...
	Rules []string `json:"rules,omitempty"`
	// Answers are its ports that answer: "127.0.0.1:10249 (mode nftables)", ...
	Answers []string `json:"answers,omitempty"`
	// Processes are its processes in this network namespace, where this process may
	// see them: "process 4711".
	Processes []string `json:"processes,omitempty"`
	// IPVS says that it has its IPVS mode's device, whose rules we cannot remove.
	IPVS bool `json:"ipvs,omitempty"`
}

// Any says that there is something of kube-proxy.
func (e Evidence) Any() bool { return len(e.Rules) > 0 || e.Runs() }

// Runs says that it is running, not only what it left.
func (e Evidence) Runs() bool { return len(e.Answers)+len(e.Processes) > 0 }

func (e Evidence) String() string {
	var parts []string
	if len(e.Rules) > 0 {
		parts = append(parts, strings.Join(e.Rules, ", "))
	}
	if len(e.Answers) > 0 {
		parts = append(parts, "answers on "+strings.Join(e.Answers, ", "))
	}
	if len(e.Processes) > 0 {
		parts = append(parts, "runs as "+strings.Join(e.Processes, ", "))
	}
	if len(parts) == 0 {
		return "nothing of kube-proxy"
	}
	return strings.Join(parts, "; ")
}

// Decide says whether the Services of a node are ours to serve, and why not. ours
// says that our own tables are in force already: what was taken over stays ours.
func Decide(m Mode, e Evidence, ours bool) (on bool, why string) {
	switch {
	case m == On:
		return true, ""
	case m == Off:
		return false, "--service-proxy off"
	case ours || !e.Any():
		return true, ""
	case !e.Runs():
		return false, fmt.Sprintf("kube-proxy left its rules here (%s), but does not answer: they get old; `podlane takeover kube-proxy` removes them", e)
	}
	return false, fmt.Sprintf("kube-proxy serves this node (%s); `podlane takeover kube-proxy` shows how to replace it", e)
}
