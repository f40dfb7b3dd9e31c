package agent

import (
	"slices"
	"time"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/kube"
	"github.com/podlane/podlane/explain/observe"
)

// A state is told when it has lasted, so that a start or a short trouble is no news;
// what lasts on is told again now and then.
const (
	startMayTake  = 15 * time.Second
	troubleLasts  = time.Minute
	tellAgain     = 30 * time.Minute
	foreignEvery  = 5 * time.Minute
	reasonReady   = "PodlaneReady"
	reasonUnready = "PodlaneCannotServePods"
	reasonLost    = "PodlanePacketsLost"
	reasonFailed  = "PodlaneNotApplied"
)

// telling tells the API what an operator must know. Its fields belong to the
// goroutine of Run.
type telling struct {
	reporter *kube.Reporter // nil: nobody is told
	uid      string         // of the Node object that was told
	said     string         // why the node cannot serve pods; "" is that it can
	ever     bool           // anything was said of that object
	unready  time.Time      // since when; zero: it is not
	seen     map[string]time.Time
	told     map[string]time.Time

	foreign   []string // base chains of others whose policy is to drop
	foreignAt time.Time
	looked    chan []string
}

func newTelling(r *kube.Reporter) *telling {
	return &telling{reporter: r, seen: map[string]time.Time{}, told: map[string]time.Time{}, looked: make(chan []string, 1)}
}

// tell is called after each turn of the loop.
func (a *Agent) tell(now time.Time) {
	t := a.telling
	t.look(now)
	if a.snapshot == nil || a.plan == nil {
		return
	}
	own := a.snapshot.Nodes.Get(cluster.Key{Name: a.config.Node})
	if own == nil || t.reporter == nil {
		return
	}
	if own.UID != t.uid {
		t.uid, t.ever = own.UID, false
	}
	why := ""
	if w := a.serving.unready.Load(); w != nil {
		why = *w
	}
	t.condition(now, why, now.Sub(a.started))
	t.troubles(now, a.probing.problems(), reasonLost)
	t.troubles(now, a.failing(why), reasonFailed)
}

// failing is what cannot be applied, where it is not what the node is unready for.
func (a *Agent) failing(why string) []cluster.Problem {
	if a.lastErr == nil || why != "" {
		return nil
	}
	return []cluster.Problem{{Kind: "node", Key: cluster.Key{Name: a.config.Node}, Err: a.lastErr.Error()}}
}

// condition keeps the node's condition.
func (t *telling) condition(now time.Time, why string, up time.Duration) {
	if why == "" {
		t.unready = time.Time{}
		if t.ever && t.said == "" {
			return
		}
		t.reporter.Condition(true, reasonReady, "Podlane serves pods on this node")
		if t.ever {
			t.reporter.Event(t.uid, false, reasonReady, "pods can be served again")
		}
		t.ever, t.said = true, ""
		return
	}
	if t.unready.IsZero() {
		t.unready = now
	}
	lasts := now.Sub(t.unready) >= troubleLasts || !t.ever && up >= startMayTake
	if !lasts || t.ever && t.said == why {
		return
	}
	t.reporter.Condition(false, reasonUnready, why)
	t.reporter.Event(t.uid, true, reasonUnready, why)
	t.ever, t.said = true, why
}

// troubles tells each problem that has lasted once, and again where it stays.
func (t *telling) troubles(now time.Time, problems []cluster.Problem, reason string) {
	there := map[string]bool{}
	for _, p := range problems {
		text := p.String()
		there[reason+text] = true
		if t.seen[reason+text].IsZero() {
			t.seen[reason+text] = now
		}
		if now.Sub(t.seen[reason+text]) < troubleLasts || now.Sub(t.told[reason+text]) < tellAgain {
			continue
		}
		t.told[reason+text] = now
		t.reporter.Event(t.uid, true, reason, text)
	}
	for key := range t.seen {
		if len(key) > len(reason) && key[:len(reason)] == reason && !there[key] {
			delete(t.seen, key)
		}
	}
	for key, at := range t.told {
		if now.Sub(at) > tellAgain {
			delete(t.told, key)
		}
	}
}

// look looks for packet filters of others now and then, beside the loop.
func (t *telling) look(now time.Time) {
	select {
	case t.foreign = <-t.looked:
	default:
	}
	if now.Sub(t.foreignAt) < foreignEvery {
		return
	}
	t.foreignAt = now
	go func() { t.looked <- foreignPolicies() }()
}

// foreignPolicies names the base chains of others that drop what none of their rules
// accepts: no rule of ours can overrule them.
func foreignPolicies() []string {
	found, err := observe.ForeignDrops()
	if err != nil {
		return nil
	}
	var out []string
	for _, f := range found {
		if f.Handle == 0 && !f.Jumped && !slices.Equal(f.Hooks, []string{"output"}) {
			out = append(out, f.String()+": it drops packets of pods and of VXLAN unless a rule of its own accepts them; accept the cluster's pod CIDRs and nodes there")
		}
	}
	return out
}
