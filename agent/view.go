package agent

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/explain"
	"github.com/podlane/podlane/explain/observe"
	"github.com/podlane/podlane/explain/view"
)

// CheckView says what is wrong with an address of the page: it is for the node
// itself alone, since it shows to everybody who comes there what flows.
func CheckView(addr string) error {
	if addr == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("%s is not a loopback address", addr)
	}
	return nil
}

// view serves the page until ctx ends, where it is wanted.
func (a *Agent) view(ctx context.Context) error {
	if a.config.View == "" {
		return nil
	}
	l, err := net.Listen("tcp", a.config.View)
	if err != nil { // no reason for the node to go without an agent
		a.log.Warn("no page", "err", err)
		return nil
	}
	a.log.Info("page", "url", fmt.Sprintf("http://%s/", l.Addr()))
	return (&view.Viewer{Name: "on node " + a.config.Node, Source: viewed{a}}).Serve(ctx, l)
}

// viewed is what the page shows: the cluster as this node knows it, and the
// connections that its conntrack knows.
type viewed struct{ *Agent }

var errWaits = errors.New("the agent waits for the cluster's first state")

func (v viewed) Look(ctx context.Context) (*cluster.Snapshot, []observe.Connection, error) {
	var s scene
	if !v.ask(ctx, func() { s = v.scene() }) || s.plan == nil {
		return nil, nil, errWaits
	}
	flows, err := observe.AllFlows()
	if err != nil {
		return nil, nil, err
	}
	return s.plan.Snapshot, observe.OwnersIn(s.plan.Snapshot).Connections(s.plan.Node, flows, ""), nil
}

func (v viewed) Explain(ctx context.Context, access explain.Access) (*explain.Answer, error) {
	var w explain.World
	if !v.ask(ctx, func() {
		if v.plan != nil {
			w = v.world()
		}
	}) || w.Snapshot == nil {
		return nil, errWaits
	}
	return explain.Explain(w, access)
}
