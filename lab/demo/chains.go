package demo

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/podlane/podlane/proxy/iptables"
)

// countedByChains is counted where the Services are chains of iptables: the
// packets of the rule that leads to the frontend's chain, which the first of each
// connection meets.
func (d *demo) countedByChains(ctx context.Context, t target) (uint64, error) {
	program := "iptables-save"
	if strings.Contains(t.clusterIP, ":") {
		program = "ip6tables-save"
	}
	out, err := d.client.Output(ctx, "node/"+d.scene.first, program, "-c", "-t", "nat")
	if err != nil {
		return 0, err
	}
	return chainCount(out, t.clusterIP, int(t.port))
}

// chainCount finds the rule of a frontend in what `iptables-save -c` prints.
func chainCount(save, ip string, port int) (uint64, error) {
	for line := range strings.Lines(save) {
		count, rule, found := strings.Cut(strings.TrimPrefix(line, "["), "] -A "+iptables.Prefix+"SERVICES ")
		if !found || !strings.Contains(rule, "-d "+ip+"/") || !strings.Contains(rule, fmt.Sprintf("--dport %d ", port)) {
			continue
		}
		packets, _, _ := strings.Cut(count, ":")
		return strconv.ParseUint(packets, 10, 64)
	}
	return 0, fmt.Errorf("no rule of iptables for %s, port %d", ip, port)
}
