package kube

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podlane/podlane/perf"
)

// agentSelector finds podlane's agents, as deploy/podlane.yaml and the chart label them.
const agentSelector = "app.kubernetes.io/name=podlane,app.kubernetes.io/component=agent"

// counter reads the data path's counters of one node.
type counter func(context.Context) (map[string]uint64, error)

// counters finds what counts on the two nodes. On another network than podlane there is nothing, and nothing is
// missed; where there is and it cannot be read, note says why.
func (r *run) counters(ctx context.Context) (byNode map[string]counter, note string) {
	list := &corev1.PodList{}
	options := metav1.ListOptions{LabelSelector: agentSelector}
	if err := r.core.Get().Resource("pods").VersionedParams(&options, parameters).Do(ctx).Into(list); err != nil {
		return nil, fmt.Sprintf("not read: pods of all namespaces: %v", plain(err))
	}
	byNode = map[string]counter{}
	for _, p := range list.Items {
		if p.Status.Phase != corev1.PodRunning || p.DeletionTimestamp != nil || !p.Spec.HostNetwork || p.Spec.NodeName != r.from && p.Spec.NodeName != r.to {
			continue
		}
		c := r.counter(p)
		counts, err := c(ctx)
		if err != nil {
			return nil, fmt.Sprintf("not read: pod %s: %v", p.Name, err)
		}
		if _, serves := counts[perf.Connections]; !serves {
			return nil, "not read: Services are not podlane's"
		}
		byNode[p.Spec.NodeName] = c
	}
	if len(byNode) > 0 {
		note = "read in the first round"
	}
	return byNode, note
}

func (r *run) counter(agent corev1.Pod) counter {
	return func(ctx context.Context) (counts map[string]uint64, err error) {
		out, err := r.exec(ctx, agent.Namespace, agent.Name, []string{"/podlane", "perf", "witness", r.namespace() + "/server"})
		if err != nil {
			return nil, plain(err)
		}
		return counts, json.Unmarshal(out, &counts)
	}
}

// witnessed has a path's proof look at the counters of the node on which Services are translated for it.
func (r *run) witnessed(proof perf.Proof, node string) *perf.Proof {
	if proof.Witness = r.counts[node]; proof.Witness == nil {
		return &proof
	}
	proof.Rounds = 1 // an exec takes as long as a measurement
	if proof.Translated {
		proof.Moves = []string{perf.Connections}
	} else {
		proof.Still = map[string]uint64{perf.Connections: 0}
	}
	return &proof
}

// dataPath says how podlane carried the packets from pod to pod, by its counters; empty where there are none.
func dataPath(e *perf.Evaluation) string {
	for _, c := range e.Cells {
		if c.Path != perf.PodPod || c.Moved == nil {
			continue
		}
		way := "routed"
		if c.Encapsulated() {
			way = "VXLAN"
		}
		if c.Moved[perf.Shortened] > 0 {
			way += ", fast path"
		}
		return way
	}
	return ""
}
