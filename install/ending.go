package install

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/podlane/podlane/cni"
)

// endingTime is how long a cleanup waits for pods that end.
const endingTime = 30 * time.Second

// awaitEnd waits for Podlane's own pods on the node, which are deleted together with
// the agent: without the CNI plugin, which the cleanup removes, the runtime cannot end
// them. After that time it goes on: they may be there to stay.
func (t Traces) awaitEnd(ctx context.Context, atMost time.Duration, log *slog.Logger) error {
	end := time.Now().Add(atMost)
	for said := []string(nil); ; {
		pods := t.ending()
		if len(pods) == 0 {
			return nil
		}
		if time.Now().After(end) {
			log.Warn("goes on, and these pods may stay Terminating until the next network is there", "pods", pods)
			return nil
		}
		if !slices.Equal(pods, said) {
			said = pods
			log.Info("waits until Podlane's own pods have ended", "pods", pods, "at most", atMost)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// ending names the pods of the DNS server, and of what makes its Service, that are on
// record and have their link: it goes with the pod also where there is no agent any
// more that would take the pod off the record.
func (t Traces) ending() []string {
	all, _ := cni.ReadRecord(filepath.Join(t.StateDir, "allocations", "v1")) // one that cannot be read is not waited for
	var pods []string
	for _, a := range all {
		if a.Namespace != "kube-system" || !strings.HasPrefix(a.Pod, "podlane-dns-") {
			continue
		}
		if _, err := net.InterfaceByName(a.Link); err == nil {
			pods = append(pods, a.PodName())
		}
	}
	return pods
}
