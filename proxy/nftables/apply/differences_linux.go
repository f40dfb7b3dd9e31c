package apply

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/proxy"
	"github.com/podlane/podlane/proxy/nftables"
)

// InForce gives the tables of ours that packets of a family meet: one, unless an
// agent was killed in the middle of a swap.
func InForce(conn *nft.Conn, f nft.Family) ([]nft.Table, error) {
	return (&family{conn: conn, family: f}).forced()
}

// Differences gives what a start would write to bring the tables in force of a
// family to t and pods, as nft commands, one each: none where all is right. It
// changes nothing. As a start it reads which Services there are and the hash of
// their endpoints, and not the endpoints themselves. A table that would be built
// anew is one line that begins with '#'.
func Differences(conn *nft.Conn, f nft.Family, t *proxy.Table, pods []netip.Addr) ([]string, error) {
	forced, err := InForce(conn, f)
	if err != nil {
		return nil, err
	}
	if len(forced) == 0 {
		return []string{fmt.Sprintf("# no table %s%d of family %s is in force", nft.Prefix, nftables.Layout, f)}, nil
	}
	a, err := (&family{conn: conn, family: f}).adopt(forced[0])
	if err != nil {
		return nil, err
	}
	if a == nil {
		return []string{fmt.Sprintf("# the chains or rules of table %s are not those of this version", forced[0])}, nil
	}
	var lines []string
	_, err = nftables.Diff(a, t, pods, func(tx *nft.Tx) error {
		for line := range strings.Lines(tx.String()) {
			lines = append(lines, strings.TrimSpace(line))
		}
		return nil
	})
	return lines, err
}
