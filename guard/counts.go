package guard

import "github.com/podlane/podlane/kernel/nft"

// Counts reads how many packets each reason has dropped, of some families, since the
// rules were written. It is the one function here that asks the kernel.
func Counts(conn *nft.Conn, families ...nft.Family) (map[string]uint64, error) {
	counts := map[string]uint64{}
	for _, f := range families {
		rules, err := conn.Rules(nft.Table{Family: f, Name: Name})
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			if r.Counter.Packets > 0 {
				counts[r.Comment] += r.Counter.Packets
			}
		}
	}
	return counts, nil
}
