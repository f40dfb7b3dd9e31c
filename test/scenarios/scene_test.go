package scenarios

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/podlane/podlane/cluster/file"
	"github.com/podlane/podlane/lab"
)

// scene is a lab of three nodes. Things are done to n1; n2 and n3 and what is on
// n1 alone tell what else broke.
//
//	n1: client, near    n2: far    n3: third    Services: near and far, of the pods of those names
type scene struct {
	*testing.T
	*lab.Client
	name    string
	program string
	addrs   map[string][]string // of pods and Services, IPv4 first
}

const objects = `
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {nodeName: n1, containers: [{name: c, image: pause}]}
---
{near}---
{far}---
{third}---
apiVersion: v1
kind: Service
metadata: {name: near}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: near}, ports: {ports}}
---
apiVersion: v1
kind: Service
metadata: {name: far}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: far}, ports: {ports}}
`

const ports = `[{name: udp, protocol: UDP, port: 9000}, {name: tcp, port: 9000}, {name: stream, port: 9001}, {name: bulk, port: 9002}]`

// server gives the manifest of a server pod.
func server(name, app, node string) string {
	self, _ := os.Executable()
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %s}}
spec: {nodeName: %s, containers: [{name: c, image: test, command: [%q, serve, %s],
  ports: [{containerPort: 9000, protocol: UDP}, {containerPort: 9000}, {containerPort: 9001}, {containerPort: 9002}]}]}
`, name, app, node, self, name)
}

// up starts the lab with an overlay mode.
func up(t *testing.T, overlay string) *scene {
	t.Helper()
	return upWith(t, overlay, objects)
}

// options are those of the lab that the flag -fast-path asks for.
func options(overlay string) lab.Options {
	o := lab.Options{Nodes: 3, Overlay: overlay, FastPath: *fastPath}
	switch {
	case *fastPath == "on":
		o.SocketLB = "on"
	case *fastPath == "" && overlay == "direct":
		o.FastPath = "off"
	}
	return o
}

func upWith(t *testing.T, overlay, objects string) *scene {
	t.Helper()
	if !*asked {
		t.Skip("takes minutes: make scenarios")
	}
	s := &scene{T: t, name: fmt.Sprintf("scenarios-%s-%d", overlay, os.Getpid()), program: build(t, "podlane", "")}
	text := strings.NewReplacer("{near}", server("near", "near", "n1"), "{far}", server("far", "far", "n2"), "{third}", server("third", "third", "n3"), "{ports}", ports).Replace(objects)
	o := options(overlay)
	o.Name, o.Objects, o.Executable = s.name, s.parse(text), s.program
	client, err := lab.Up(t.Context(), o)
	if err != nil {
		if client != nil {
			_ = client.Down(context.Background())
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			s.tellLogs()
		}
		if err := client.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	s.Client = client
	s.look()
	return s
}

// of gives the scene as that of a subtest.
func (s *scene) of(t *testing.T) *scene {
	c := *s
	c.T = t
	return &c
}

func (s *scene) parse(text string) *file.Objects {
	s.Helper()
	o, problems := file.Parse("objects.yaml", []byte(text))
	if len(problems) > 0 {
		s.Fatal(problems)
	}
	return o
}

// look learns the addresses.
func (s *scene) look() {
	s.Helper()
	st, err := s.Status(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	s.addrs = map[string][]string{}
	for _, p := range st.Pods {
		s.addrs["pod "+p.Name] = p.IPs
	}
	for _, v := range st.Services {
		s.addrs["Service "+v.Name] = v.ClusterIPs
	}
}

// apply changes objects; the change is made when it comes back, and not awaited.
func (s *scene) apply(text string) {
	s.Helper()
	if problems, err := s.Apply(s.Context(), s.parse(text)); err != nil || len(problems) > 0 {
		s.Fatal(err, problems)
	}
}

func (s *scene) remove(text string) {
	s.Helper()
	if err := s.Delete(s.Context(), s.parse(text)); err != nil {
		s.Fatal(err)
	}
}

// sh runs a shell script at a target and gives its output.
func (s *scene) sh(target, script string) string {
	s.Helper()
	out, err := s.Output(s.Context(), target, "sh", "-ec", script)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

// podlane runs the program on the lab's machine, not in the lab.
func (s *scene) podlane(args ...string) (string, error) {
	out, err := exec.CommandContext(s.Context(), s.program, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("podlane %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// agent asks a node's agent for its status; ok says that all is applied.
func (s *scene) agent(node string) (text string, ok bool) {
	text, err := s.Output(s.Context(), "node/"+node, "podlane", "status", "--run-dir", filepath.Join(s.Dir(), "nodes", node, "run"))
	return text, err == nil
}

// settled waits until the lab is as the objects want it, and every node's kernel
// as its agent wants it.
func (s *scene) settled() {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), 30*time.Second)
	defer cancel()
	if _, err := s.Wait(ctx, nil); err != nil {
		s.Fatal(err)
	}
	s.eventually(10*time.Second, func() error {
		_, err := s.podlane("lab", "explain", "--name", s.name, "--all")
		return err
	})
}

func (s *scene) eventually(most time.Duration, is func() error) time.Duration {
	s.Helper()
	began := time.Now()
	for {
		err := is()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > most {
			s.Fatalf("after %s: %v", most, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// targets gives what a way has at a pod or Service: an address of each family.
func (s *scene) targets(way string, of ...string) []string {
	s.Helper()
	port := map[string]string{"stream": streamPort, "bulk": bulkPort}[way]
	if port == "" {
		port = answerPort
	}
	var all []string
	for _, what := range of {
		if len(s.addrs[what]) == 0 {
			s.Fatalf("%s has no address", what)
		}
		for _, a := range s.addrs[what] {
			all = append(all, way+"://"+net.JoinHostPort(a, port))
		}
	}
	return all
}

// watched are probes that are under way from one pod.
type watched struct {
	stop func() map[string]*report
}

// watch sends from a pod to targets until stop.
func (s *scene) watch(pod string, targets []string) watched {
	s.Helper()
	self, err1 := os.Executable()
	in, end, err2 := os.Pipe()
	text, out, err3 := os.Pipe()
	if err := errors.Join(err1, err2, err3); err != nil {
		s.Fatal(err)
	}
	type result struct {
		code int
		err  error
	}
	done := make(chan result, 1)
	go func() {
		code, err := s.Exec(s.Context(), pod, append([]string{self, "pulse"}, targets...), lab.Stdio{In: in, Out: out, Err: os.Stderr})
		_ = out.Close()
		_ = in.Close()
		done <- result{code, err}
	}()
	return watched{func() map[string]*report {
		s.Helper()
		_ = end.Close()
		data, err := io.ReadAll(text)
		r := <-done
		reports := map[string]*report{}
		if err := errors.Join(err, r.err, json.Unmarshal(data, &reports)); err != nil {
			s.Fatalf("%s: status %d: %v: %s", pod, r.code, err, data)
		}
		return reports
	}}
}

// event does something and says when a node could see it. Zero: when it began.
type event func() time.Time

// once is an event that is seen when the script begins on the node.
func (s *scene) once(node, script string) event {
	return func() time.Time { s.sh("node/"+node, script); return time.Time{} }
}

// after is an event that is seen when the script prints the time, in ns.
func (s *scene) after(node, script string) event {
	return func() time.Time {
		ns, err := strconv.ParseInt(strings.TrimSpace(s.sh("node/"+node, script)), 10, 64)
		if err != nil {
			s.Error(err)
		}
		return time.Unix(0, ns)
	}
}

const now = "date +%s%N"

// limit is how long a node may take from an event on: a second. Where more
// programs want to run than twice the CPUs, it is as much longer as each has to wait.
func (s *scene) limit() time.Duration {
	s.Helper()
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		s.Fatal(err)
	}
	load, err := strconv.ParseFloat(strings.Fields(string(text))[0], 64)
	if err != nil {
		s.Fatal(err)
	}
	share := load / float64(runtime.NumCPU())
	if share <= 2 {
		return time.Second
	}
	d := min(time.Duration(share*float64(time.Second)).Round(100*time.Millisecond), 5*time.Second)
	s.Logf("the machine is busy, load %.1f: %s is allowed instead of a second", load, d)
	return d
}

// disturbLink has an event happen to what joins n1 to the others, under probes from
// client to what is on the other node. They must arrive at most a second after the
// event could be seen. What does not cross n1's link must arrive always.
func (s *scene) disturbLink(do event) {
	s.Helper()
	far := slices.Concat(s.targets("udp", "pod far", "Service far"), s.targets("tcp", "pod far", "Service far"), s.targets("stream", "Service far"))
	s.between(do, s.limit(), far, s.here(), s.there())
}

// disturbNode is disturbLink for what all packets of n1 may miss.
func (s *scene) disturbNode(do event) {
	s.Helper()
	far := slices.Concat(s.targets("udp", "pod far", "Service far"), s.targets("tcp", "pod far", "Service far"), s.targets("stream", "Service far"))
	s.between(do, s.limit(), append(far, s.here()...), nil, s.there())
}

// here is what stays on n1.
func (s *scene) here() []string {
	return append(s.targets("udp", "pod near"), s.targets("tcp", "Service near")...)
}

// there is what never comes to n1.
func (s *scene) there() []string {
	return append(s.targets("udp", "pod far"), s.targets("tcp", "Service far")...)
}

// undisturbed has it happen under the same probes, of which none may be lost.
func (s *scene) undisturbed(do event) {
	s.Helper()
	far := slices.Concat(s.targets("udp", "pod far", "Service far"), s.targets("tcp", "pod far", "Service far", "Service near"), s.targets("stream", "Service far"))
	s.between(do, 0, far, nil, nil)
}

// agents stops, kills or starts agents of nodes, of all without names.
func (s *scene) agents(do lab.AgentAction, nodes ...string) {
	s.Helper()
	if err := s.Agents(s.Context(), do, nodes...); err != nil {
		s.Fatal(err)
	}
}

// reaches wants every probe from client to arrive.
func (s *scene) reaches(what ...string) {
	s.Helper()
	s.between(func() time.Time { return time.Time{} }, 0, append(s.targets("udp", what...), s.targets("tcp", what...)...), nil, nil)
}

// settling is how long before the event probes are counted from: when they start,
// all programs do, and all of them connect at once.
const settling = time.Second

// between sends from client to far and here, from third to there; only what goes
// to far may be lost, until most after the event. It ends with a settled lab.
func (s *scene) between(do event, most time.Duration, far, here, there []string) {
	s.Helper()
	watches := map[string]watched{"client": s.watch("client", slices.Concat(far, here))}
	if len(there) > 0 {
		watches["third"] = s.watch("third", there)
	}
	time.Sleep(settling + late)
	began := time.Now()
	seen := do()
	if seen.IsZero() {
		seen = began
	}
	time.Sleep(most + 1500*time.Millisecond)
	var longest time.Duration
	for _, pod := range slices.Sorted(maps.Keys(watches)) {
		reports := watches[pod].stop()
		for _, target := range slices.Sorted(maps.Keys(reports)) {
			may := most
			if pod == "third" || !slices.Contains(far, target) {
				may = 0
			}
			longest = max(longest, s.judge(pod+" → "+target, reports[target], began, seen, may))
		}
	}
	s.Logf("packets arrive again %d ms after the event", longest.Milliseconds())
	s.settled()
}

// judge says how long after the event the last probe was lost.
func (s *scene) judge(what string, r *report, began, seen time.Time, most time.Duration) time.Duration {
	s.Helper()
	if r.Sent < 5 || len(r.By) == 0 {
		s.Errorf("%s: only %d probes, answered by %v: %s", what, r.Sent, r.By, r.Error)
	}
	if r.Ended != "" {
		s.Errorf("%s: the connection broke: %s", what, r.Ended)
	}
	if r.Unknown > 0 {
		s.Logf("%s: %d of %d not known, since the machine stood still", what, r.Unknown, r.Sent)
	}
	var last, before time.Time
	for _, at := range r.Lost {
		if at.Before(began.Add(-settling)) {
			continue
		}
		if at.Before(began.Add(-settling / 4)) { // later ones may have been under way
			before = at
		}
		if at.After(last) {
			last = at
		}
	}
	if !before.IsZero() {
		s.Errorf("%s: lost %s before the event: %s", what, began.Sub(before), r.Error)
	}
	if len(r.Lost) == 0 {
		return 0
	}
	took := last.Sub(seen)
	if took > most || most == 0 {
		s.Errorf("%s: %d of %d lost, the last one %s after the event, at most %s is allowed: %s", what, len(r.Lost), r.Sent, took.Round(time.Millisecond), most, r.Error)
	}
	return max(0, took)
}

// tellLogs prints what the agents said last.
func (s *scene) tellLogs() {
	for _, n := range []string{"n1", "n2", "n3"} {
		path, err := s.LogFile(context.Background(), "node/"+n)
		if err != nil {
			continue
		}
		if data, err := os.ReadFile(path); err == nil {
			s.Logf("agent of %s:\n%s", n, data[max(0, len(data)-3000):])
		}
	}
}
