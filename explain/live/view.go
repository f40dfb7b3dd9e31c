package live

import (
	"context"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/explain"
	"github.com/podlane/podlane/explain/observe"
)

// LabView is a lab as its page shows it (see explain/view).
type LabView struct{ Name string }

// Look reads the lab anew.
func (l LabView) Look(ctx context.Context) (*cluster.Snapshot, []observe.Connection, error) {
	c, err := Lab(ctx, l.Name)
	if err != nil {
		return nil, nil, err
	}
	conns, err := c.Connections(ctx, "")
	return c.Snapshot, conns, err
}

// Explain explains in the lab as it is now.
func (l LabView) Explain(ctx context.Context, a explain.Access) (*explain.Answer, error) {
	c, err := Lab(ctx, l.Name)
	if err != nil {
		return nil, err
	}
	return c.Explain(ctx, a)
}
