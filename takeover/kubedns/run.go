package kubedns

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"strings"
	"time"

	"github.com/podlane/podlane/cluster/kube"
)

const pollEvery = 300 * time.Millisecond

// sayEvery is how often a wait says that it goes on.
const sayEvery = 5 * time.Second

// PrintMissing says what Make does.
func (s *State) PrintMissing(ctx context.Context, w io.Writer) error {
	ips, why, err := s.address(ctx)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "1. make the Service %s at %s (%s), which leads to podlane dns; it goes with the DaemonSet %s\n", s.Service, texts(ips), why, s.DaemonSet)
	return err
}

// Make makes the Service where there is none.
func (s *State) Make(ctx context.Context, w io.Writer) error {
	ips, why, err := s.address(ctx)
	if err != nil {
		return err
	}
	o, path := newService(s.Service, &s.own, s.DaemonSet.Name, ips), "/api/v1/namespaces/"+s.Service.Namespace+"/services"
	err = s.api.Create(ctx, path, o)
	if kube.Invalid(err) && strings.Contains(err.Error(), "trafficDistribution") {
		fmt.Fprintln(w, "   "+notNearest)
		err = s.api.Create(ctx, path, withoutNearest(o))
	}
	if err != nil {
		return fmt.Errorf("the Service %s at %s (%s): %w", s.Service, texts(ips), why, err)
	}
	_, err = fmt.Fprintf(w, "1. done: Service %s at %s; kubelets must give pods this address (clusterDNS)\n", s.Service, texts(ips))
	return err
}

const notNearest = "the API server does not know trafficDistribution " + nearest + " (it does from Kubernetes 1.34 on): queries go to all nodes' servers"

func texts(ips []netip.Addr) string {
	var out []string
	for _, ip := range ips {
		out = append(out, ip.String())
	}
	return strings.Join(out, " ")
}

// PrintOver says what Over does, but for what the settings come to.
func (s *State) PrintOver(w io.Writer) {
	fmt.Fprintf(w, "2. wait until all of %s are ready\n", s.DaemonSet)
	fmt.Fprintf(w, "3. lead the Service to them: selector %s -> %s, trafficDistribution %s\n", selector(s.service.Spec.Selector), selector(s.own.Spec.Selector.MatchLabels), nearest)
	for _, r := range s.Remarks() {
		fmt.Fprintln(w, "   remark: "+r)
	}
}

// Over switches the Service over, once Podlane's servers are ready with the other
// one's settings. Nothing of the Service changes before.
func (s *State) Over(ctx context.Context, w io.Writer) error {
	if err := s.takeSettings(ctx); err != nil {
		return err
	}
	fmt.Fprintln(w, "1. done: podlane dns has the settings")
	if err := s.awaitOwn(ctx, w); err != nil {
		return fmt.Errorf("the Service was not changed: %w", err)
	}
	fmt.Fprintf(w, "2. done: %d of %d ready\n", s.own.Status.Ready, s.own.Status.Desired)
	next, err := switched(s.raw, s.own.Spec.Selector.MatchLabels)
	if err != nil {
		return fmt.Errorf("the Service %s: %w", s.Service, err)
	}
	var now service
	err = s.api.Update(ctx, s.servicePath(), next, &now)
	if kube.Invalid(err) && strings.Contains(err.Error(), "trafficDistribution") {
		next = withoutNearest(next)
		err = s.api.Update(ctx, s.servicePath(), next, &now)
	}
	if err != nil {
		return fmt.Errorf("update of the Service %s (run the command again, which says what it is now): %w", s.Service, err)
	}
	if now.Spec.TrafficDistribution != nearest {
		fmt.Fprintln(w, "   "+notNearest)
	}
	_, err = fmt.Fprintf(w, "3. done: the Service %s leads to podlane dns\n", s.Service)
	return err
}

// takeSettings copies the settings, and has the servers start anew where they have
// others.
func (s *State) takeSettings(ctx context.Context) error {
	if s.Corefile() == "" {
		return nil
	}
	if !maps.Equal(s.copy.Data, s.theirs.Data) {
		c := object{"apiVersion": "v1", "kind": "ConfigMap", "metadata": object{"name": copied, "namespace": s.DaemonSet.Namespace}, "data": s.theirs.Data}
		var err error
		if s.copy.Metadata.UID == "" {
			err = s.api.Create(ctx, "/api/v1/namespaces/"+s.DaemonSet.Namespace+"/configmaps", c)
		} else {
			err = s.api.Update(ctx, s.copiedPath(), c, nil)
		}
		if err == nil {
			_, err = s.api.Get(ctx, s.copiedPath(), &s.copy)
		}
		if err != nil {
			return err
		}
	}
	version := s.copy.Metadata.Version
	if s.own.Spec.Template.Metadata.Annotations[marked] == version {
		return nil
	}
	return s.api.Patch(ctx, s.daemonSetPath(), object{"spec": object{"template": object{"metadata": object{"annotations": object{marked: version}}}}})
}

func (s *State) awaitOwn(ctx context.Context, w io.Writer) error {
	return await(ctx, w, func() (bool, string, error) {
		_, err := s.readDaemonSet(ctx)
		return s.own.ready(), fmt.Sprintf("%s: %d of %d have the settings, %d are ready", s.DaemonSet, s.own.Status.Updated, s.own.Status.Desired, s.own.Status.Ready), err
	})
}

// PrintBack says what Back does.
func (s *State) PrintBack(w io.Writer) error {
	_, labels, err := restored(s.raw)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "1. wait until one of the pods %s is ready\n", selector(labels))
	fmt.Fprintf(w, "2. lead the Service %s to them again, as it was\n", s.Service)
	_, err = fmt.Fprintf(w, "3. delete the copy of the settings, ConfigMap %s/%s\n", s.DaemonSet.Namespace, copied)
	return err
}

// Back undoes Over, once the other server is ready.
func (s *State) Back(ctx context.Context, w io.Writer) error {
	next, labels, err := restored(s.raw)
	if err != nil {
		return err
	}
	err = await(ctx, w, func() (bool, string, error) {
		var pods podList
		_, err := s.api.Get(ctx, "/api/v1/namespaces/"+s.Service.Namespace+"/pods", &pods, "labelSelector", selector(labels))
		return pods.ready() > 0, "none of the pods " + selector(labels) + " is ready", err
	})
	if err != nil {
		return fmt.Errorf("the Service was not changed: %w", err)
	}
	fmt.Fprintln(w, "1. done")
	if err := s.api.Update(ctx, s.servicePath(), next, nil); err != nil {
		return fmt.Errorf("update of the Service %s (run the command again, which says what it is now): %w", s.Service, err)
	}
	fmt.Fprintf(w, "2. done: the Service %s leads to the pods %s\n", s.Service, selector(labels))
	if err := s.api.Delete(ctx, s.copiedPath()); err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, "3. done")
	return err
}

// await waits until is says so, and says now and then what it waits for.
func await(ctx context.Context, w io.Writer, is func() (bool, string, error)) error {
	said := time.Now()
	for {
		ok, what, err := is()
		if ok || err != nil && ctx.Err() == nil {
			return err
		}
		if time.Since(said) > sayEvery {
			fmt.Fprintln(w, "   "+what)
			said = time.Now()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, context.Cause(ctx))
		case <-time.After(pollEvery):
		}
	}
}
