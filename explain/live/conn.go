package live

import (
	"context"

	"github.com/podlane/podlane/explain/observe"
)

// Connections gives what the nodes' conntrack knows of connections that an
// address, or address and port, is part of; with no match all to Services. Each
// connection comes from the node that translated it.
func (c *Cluster) Connections(ctx context.Context, match string) ([]observe.Connection, error) {
	owners := observe.OwnersIn(c.Snapshot)
	var list []observe.Connection
	for _, node := range c.NodeNames() {
		var flows []observe.TimedFlow
		if err := c.observe(ctx, "node/"+node, &flows, "flows"); err != nil {
			return nil, err
		}
		list = append(list, owners.Connections(node, flows, match)...)
	}
	return list, nil
}
