package machines

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

const bridge = "br0"

// Options say what cluster is wanted.
type Options struct {
	Bin    string   // the folder with the programs of Kubernetes
	Dir    string   // for all files of the cluster
	Nodes  int      // their number
	Images []string // archives that every node has, beside the pods' image
	// FastPath has the manifest switch on the fast path and the translation of Services
	// at the socket, which takes more of the nodes.
	FastPath bool
	Log      io.Writer
}

// Cluster is a running Kubernetes.
type Cluster struct {
	Options
	Nodes []*Node
	plane *plane
}

// Up starts a cluster. It is up when every node is registered; without a network
// none is Ready.
func Up(ctx context.Context, o Options) (*Cluster, error) {
	began := time.Now()
	c := &Cluster{Options: o}
	say := func(format string, args ...any) {
		fmt.Fprintf(o.Log, "e2e: %5.1fs %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	if err := c.network(ctx); err != nil {
		return nil, err
	}
	var names []string
	for i := range o.Nodes {
		n, err := newNode(ctx, o.Dir, i+1)
		if err != nil {
			return nil, err
		}
		c.Nodes, names = append(c.Nodes, n), append(names, n.Name)
	}
	say("nodes %s: namespaces", strings.Join(names, " "))
	if o.FastPath {
		if err := c.fastPath(ctx); err != nil {
			return nil, fmt.Errorf("fast path: %w", err)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		c.plane, err = startPlane(gctx, o.Bin, o.Dir, names)
		say("control plane")
		return err
	})
	for _, n := range c.Nodes {
		g.Go(func() error {
			defer say("node %s: containerd and images", n.Name)
			return n.startContainerd(gctx, o.Images)
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, n := range c.Nodes {
		if err := n.startKubelet(c.plane); err != nil {
			return nil, err
		}
	}
	for _, n := range c.Nodes {
		err := n.kubelet.await(ctx, func(ctx context.Context) error {
			_, err := c.Kubectl(ctx, "get", "node", n.Name)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	say("kubelets are registered")
	return c, nil
}

// network makes the segment that all machines are on, in this program's own
// network namespace, which is the machine of the control plane.
func (c *Cluster) network(ctx context.Context) error {
	if os.Getenv(role) != "worker" {
		return errors.New("machines.Enter was not called: this is the machine's own network")
	}
	var err error
	for _, args := range []string{
		"link set lo up", "link add " + bridge + " type bridge", "addr add " + outside4 + "/24 dev " + bridge,
		"-6 addr add " + outside6 + "/64 dev " + bridge + " nodad", "link set " + bridge + " up",
	} {
		if err == nil {
			_, err = sh(ctx, "ip", strings.Fields(args)...)
		}
	}
	return err
}

// Kubectl runs kubectl as the cluster's administrator and gives its output.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return sh(ctx, filepath.Join(c.Bin, "kubectl"), append([]string{"--kubeconfig", c.Kubeconfig()}, args...)...)
}

// Kubeconfig is the file of the cluster's administrator.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.Dir, "admin.kubeconfig") }

// Path gives a file of the cluster's folder.
func (c *Cluster) Path(name string) string { return filepath.Join(c.Dir, name) }

// KillAPI takes the API server away.
func (c *Cluster) KillAPI() { c.plane.api.Kill() }

// StartAPI brings it back.
func (c *Cluster) StartAPI(ctx context.Context) error { return c.plane.startAPI(ctx) }

// Outside runs a program on the machine of the control plane, which is outside of
// the pods' network.
func (c *Cluster) Outside(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return sh(ctx, name, args...)
}

// ServeOutside runs the pods' server there.
func (c *Cluster) ServeOutside(addr string) (stop func(), err error) {
	p, err := start(c.Dir, "outside", []string{filepath.Join(c.Dir, "pod"), "serve", addr})
	if err != nil {
		return nil, err
	}
	err = p.await(context.Background(), func(ctx context.Context) error {
		return get(ctx, http.DefaultClient, "http://127.0.0.1"+addr+"/ready", "")
	})
	return p.Kill, err
}
