package takeover

import (
	"slices"
	"strings"
)

// chains and prefixes are kube-proxy's chains (pkg/proxy/iptables/proxier.go, 1.36
// and before). Kubelet's own, KUBE-FIREWALL and KUBE-KUBELET-CANARY, are not among
// them.
var (
	chains = []string{
		"KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ",
		"KUBE-FORWARD", "KUBE-PROXY-FIREWALL", "KUBE-PROXY-CANARY",
	}
	prefixes = []string{"KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-", "KUBE-XLB-"}
)

func isKubeProxys(chain string) bool {
	return slices.Contains(chains, chain) || slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(chain, p) })
}

// removal gives the input of `iptables-restore --noflush` that removes
// kube-proxy's chains, and the rules of other chains that lead to them, from what
// iptables-save printed. It is "" where there is nothing to remove.
func removal(save string) string {
	var out strings.Builder
	table := ""
	var flush, jumps, remove []string
	for line := range strings.Lines(save) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "*"):
			table, flush, jumps, remove = line, nil, nil, nil
		case strings.HasPrefix(line, ":"):
			if name, _, _ := strings.Cut(line[1:], " "); isKubeProxys(name) {
				flush, remove = append(flush, ":"+name+" - [0:0]"), append(remove, "-X "+name)
			}
		case strings.HasPrefix(line, "-A "):
			chain, rule, _ := strings.Cut(line[3:], " ")
			if !isKubeProxys(chain) && isKubeProxys(target(rule)) {
				jumps = append(jumps, "-D "+line[3:])
			}
		case line == "COMMIT" && len(flush) > 0:
			for _, lines := range [][]string{{table}, flush, jumps, remove, {"COMMIT"}} {
				for _, l := range lines {
					out.WriteString(l + "\n")
				}
			}
		}
	}
	return out.String()
}

// target is the chain that a rule leads to.
func target(rule string) string {
	words := strings.Fields(rule)
	for i, w := range words[:max(len(words)-1, 0)] {
		if w == "-j" || w == "-g" {
			return words[i+1]
		}
	}
	return ""
}
