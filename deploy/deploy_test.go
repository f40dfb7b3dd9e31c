// Package deploy has the manifests. Its tests keep the Helm chart equal to them.
package deploy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/template"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

// functions are those of Helm's that the chart uses.
var functions = template.FuncMap{
	"dir": path.Dir, "base": path.Base,
	"quote": func(v any) string { return fmt.Sprintf("%q", fmt.Sprint(v)) },
	"int64": func(v any) int64 { // Helm has numbers of values as float64, and 0 for what is no number
		if f, ok := v.(float64); ok {
			return int64(f)
		}
		n, _ := strconv.ParseInt(fmt.Sprint(v), 10, 64)
		return n
	},
	"toString": func(v any) string { return fmt.Sprint(v) },
	"toJson": func(v any) (string, error) {
		text, err := json.Marshal(v)
		return string(text), err
	},
	"default": func(def, v any) any {
		if v == nil || v == "" {
			return def
		}
		return v
	},
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// render gives the chart's objects, with changed values, but for its hooks.
func render(t *testing.T, change func(values map[string]any)) []any {
	t.Helper()
	return renderFile(t, "podlane.yaml", change)
}

func renderFile(t *testing.T, file string, change func(values map[string]any)) []any {
	t.Helper()
	var values, chart map[string]any
	if err := yaml.Unmarshal(read(t, "helm/podlane/values.yaml"), &values); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(read(t, "helm/podlane/Chart.yaml"), &chart); err != nil {
		t.Fatal(err)
	}
	change(values)
	tm, err := template.New("").Option("missingkey=error").Funcs(functions).Parse(string(read(t, "helm/podlane/templates/"+file)))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := tm.Execute(&b, map[string]any{"Values": values, "Chart": map[string]any{"AppVersion": chart["appVersion"]}}); err != nil {
		t.Fatal(err)
	}
	return objects(t, b.String())
}

func objects(t *testing.T, text string) []any {
	t.Helper()
	var all []any
	for doc := range strings.SplitSeq(text, "\n---\n") {
		var o any
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if o != nil {
			all = append(all, o)
		}
	}
	return all
}

// TestChart: with its own values the chart is the manifest.
func TestChart(t *testing.T) {
	want := objects(t, string(read(t, "podlane.yaml")))
	if diff := cmp.Diff(want, render(t, func(map[string]any) {})); diff != "" || len(want) < 10 {
		t.Errorf("%d objects; manifest -, chart +:\n%s", len(want), diff)
	}
}

// TestChart_values: every value changes something, and without DNS its objects are
// not there.
func TestChart_values(t *testing.T) {
	whole := render(t, func(map[string]any) {})
	var values map[string]any
	if err := yaml.Unmarshal(read(t, "helm/podlane/values.yaml"), &values); err != nil {
		t.Fatal(err)
	}
	for path := range leaves(values, "") {
		whole := whole
		changed := render(t, func(v map[string]any) { set(v, strings.Split(path, "."), "other") })
		if path == "fastPathSysAdmin" { // a part of fastPath
			whole = render(t, func(v map[string]any) { v["fastPath"] = true })
			changed = render(t, func(v map[string]any) { v["fastPath"], v[path] = true, true })
		}
		if path == "cleanup" {
			whole, changed = renderFile(t, "uninstall.yaml", func(map[string]any) {}), renderFile(t, "uninstall.yaml", func(v map[string]any) { v[path] = false })
			if len(changed) > 0 {
				t.Errorf("without the cleanup there are hooks: %v", changed)
			}
		}
		if path == "dns.enabled" {
			changed = render(t, func(v map[string]any) { set(v, strings.Split(path, "."), false) })
			if len(changed) != len(whole)-11 {
				t.Errorf("without DNS there are %d objects of %d", len(changed), len(whole))
			}
		}
		if cmp.Equal(whole, changed) {
			t.Errorf("the value %s changes nothing", path)
		}
	}
}

// TestChart_largeNumber: a VNI keeps its digits.
func TestChart_largeNumber(t *testing.T) {
	for _, o := range render(t, func(v map[string]any) { set(v, []string{"vxlanVNI"}, 16777215.0) }) {
		if text := fmt.Sprint(o); strings.Contains(text, "vxlanVNI:") {
			if !strings.Contains(text, "vxlanVNI:16777215") {
				t.Error(text)
			}
			return
		}
	}
	t.Error("no object has the VNI")
}

// TestChart_fastPath: its rights, flags and mounts are there with the values that ask
// for it, and only then; the BPF file system always, so that it can be taken away.
func TestChart_fastPath(t *testing.T) {
	for _, tc := range []struct {
		fast, sockets, admin bool
		args                 string
		add                  string
		cgroup               bool
	}{
		{false, false, false, "", "NET_ADMIN", false},
		{false, false, true, "", "NET_ADMIN", false},
		{true, false, false, "--fast-path=auto --socket-lb=off]", "NET_ADMIN BPF PERFMON", false},
		{true, false, true, "--fast-path=auto --socket-lb=off]", "NET_ADMIN BPF PERFMON SYS_ADMIN", false},
		{false, true, true, "--fast-path=off --socket-lb=auto --cgroup=/host/sys/fs/cgroup]", "NET_ADMIN BPF PERFMON", true},
		{true, true, false, "--fast-path=auto --socket-lb=auto --cgroup=/host/sys/fs/cgroup]", "NET_ADMIN BPF PERFMON", true},
	} {
		text := ""
		for _, o := range render(t, func(v map[string]any) {
			v["fastPath"], v["socketLB"], v["fastPathSysAdmin"] = tc.fast, tc.sockets, tc.admin
		}) {
			if m := o.(map[string]any); m["kind"] == "DaemonSet" && strings.Contains(fmt.Sprint(m["metadata"]), "podlane-agent") {
				text = fmt.Sprint(m)
			}
		}
		if !strings.Contains(text, tc.args) || (tc.args == "") == strings.Contains(text, "--fast-path") ||
			!strings.Contains(text, "map[add:["+tc.add+"] drop:[ALL]]") || !strings.Contains(text, "map[mountPath:/host/sys/fs/bpf name:bpf]") || !strings.Contains(text, "map[name:PODLANE_BPF_DIR value:/host/sys/fs/bpf/podlane]") ||
			strings.Contains(text, "/host/sys/fs/cgroup name:cgroup") != tc.cgroup || strings.Contains(text, "privileged:true") {
			t.Errorf("fastPath %v, socketLB %v, fastPathSysAdmin %v: %s", tc.fast, tc.sockets, tc.admin, text)
		}
	}
}

// TestChart_iptables: the host's programs are run with the rights that they need, and
// these are there with the values that ask for them alone: to serve by them, and to remove
// what they made.
func TestChart_iptables(t *testing.T) {
	for value, backend := range map[any]string{false: "iptables", true: "iptables", "remove": "auto"} {
		on := value != false
		text := fmt.Sprint(render(t, func(v map[string]any) { v["iptables"] = value }))
		for _, want := range []string{"--proxy-backend=" + backend + " --iptables-root=/host/root", "map[add:[NET_ADMIN NET_RAW SYS_CHROOT] drop:[ALL]]",
			"map[mountPath:/host/root name:root readOnly:true]", "map[hostPath:map[path:/ type:Directory] name:root]"} {
			if strings.Contains(text, want) != on {
				t.Errorf("iptables %v: %q there: %v", value, want, !on)
			}
		}
	}
}

// leaves gives the paths of the values; a map in braces of one line is a value.
func leaves(values map[string]any, prefix string) map[string]bool {
	out := map[string]bool{}
	for k, v := range values {
		if m, ok := v.(map[string]any); ok && k != "resources" {
			for p := range leaves(m, prefix+k+".") {
				out[p] = true
			}
			continue
		}
		out[prefix+k] = true
	}
	return out
}

func set(values map[string]any, path []string, to any) {
	if len(path) > 1 {
		set(values[path[0]].(map[string]any), path[1:], to)
		return
	}
	values[path[0]] = to
}

// TestDNS: the manifest has no address, the server's rights are to read, and those
// to make a Service are another account's.
func TestDNS(t *testing.T) {
	text := string(read(t, "podlane.yaml"))
	for _, o := range objects(t, text) {
		m := o.(map[string]any)
		meta := m["metadata"].(map[string]any)
		if m["kind"] == "Service" {
			t.Errorf("the Service %v: its address is the cluster's to say", meta["name"])
		}
		rules, _ := m["rules"].([]any)
		for _, r := range rules {
			rule := fmt.Sprint(r)
			if writes := strings.Contains(rule, "create") || strings.Contains(rule, "update") || strings.Contains(rule, "patch"); writes &&
				meta["name"] != "podlane-dns-service" && meta["name"] != "podlane-agent" {
				t.Errorf("%v may write: %s", meta["name"], rule)
			}
		}
	}
	if a := regexp.MustCompile(`\b\d+\.\d+\.\d+\.\d+\b`).FindAllString(text, -1); slices.ContainsFunc(a, func(s string) bool { return s != "127.0.0.1" }) {
		t.Errorf("addresses in the manifest: %v", a)
	}
}

// TestUninstall: the uninstall manifest has the agent's rights and no more.
func TestUninstall(t *testing.T) {
	text := string(read(t, "podlane-uninstall.yaml"))
	for _, o := range objects(t, text) {
		m := o.(map[string]any)
		if kind := m["kind"]; kind != "Namespace" && kind != "DaemonSet" {
			t.Errorf("%v: an uninstallation needs no rights in the API", kind)
		}
	}
	if !strings.Contains(text, "capabilities: {drop: [ALL], add: [NET_ADMIN]}") || strings.Contains(text, "privileged: true\n") || strings.Count(text, "mountPath: /host/sys/fs/bpf}") != 1 || strings.Count(text, "--bpf-dir=/host/sys/fs/bpf/podlane") != 1 ||
		!strings.Contains(text, "--kubelet-kubeconfig=/host/kubelet/kubelet.conf") {
		t.Error(text)
	}
}

// TestImage: what `make image` names its image is what all manifests run.
func TestImage(t *testing.T) {
	name := regexp.MustCompile(`(?m)^IMAGE \?= (\S+)$`).FindStringSubmatch(string(read(t, "../Makefile")))
	if name == nil {
		t.Fatal("make image names no image")
	}
	for file, n := range map[string]int{"podlane.yaml": 4, "podlane-uninstall.yaml": 2} {
		images := regexp.MustCompile(` image: (\S+)\n`).FindAllStringSubmatch(string(read(t, file)), -1)
		for _, i := range images {
			if i[1] != name[1] {
				t.Errorf("%s: image %s, make image makes %s", file, i[1], name[1])
			}
		}
		if len(images) != n {
			t.Errorf("%s has %d images, want %d", file, len(images), n)
		}
	}
}

// TestAgain: another version of the manifest can be applied whatever the one before has
// come to, which a Job, whose pod cannot be changed, would forbid. The right to make
// Services is with a container that ends, and the one that stays keeps no node.
func TestAgain(t *testing.T) {
	for _, o := range objects(t, string(read(t, "podlane.yaml"))) {
		m := o.(map[string]any)
		if kind := m["kind"]; kind == "Job" || kind == "Pod" {
			t.Errorf("a %v cannot be changed", kind)
		}
		if m["kind"] != "Deployment" {
			continue
		}
		template := m["spec"].(map[string]any)["template"].(map[string]any)
		if note := template["metadata"].(map[string]any)["annotations"]; fmt.Sprint(note) != "map[cluster-autoscaler.kubernetes.io/safe-to-evict:true]" {
			t.Errorf("it keeps a node from being scaled down: %v", note)
		}
		pod := template["spec"].(map[string]any)
		if pod["automountServiceAccountToken"] != false || strings.Contains(fmt.Sprint(pod["containers"]), "volumeMounts") || !strings.Contains(fmt.Sprint(pod["initContainers"]), "name:token") {
			t.Errorf("the container that stays has a token: %v", pod)
		}
	}
}

// TestChart_noKubeletConfig: without a kubelet's kubeconfig nothing is mounted.
func TestChart_noKubeletConfig(t *testing.T) {
	text := fmt.Sprint(render(t, func(v map[string]any) { v["kubeletKubeconfig"] = "" }))
	if strings.Contains(text, "kubelet-config") || !strings.Contains(text, "--kubelet-kubeconfig= ") {
		t.Error(text)
	}
}

// TestChart_uninstallFolders: the hooks see the folder of the kubelet's kubeconfig only
// where they take it: what waits only for the API server's address.
func TestChart_uninstallFolders(t *testing.T) {
	for _, tc := range []struct {
		server, config string
		cleanup, wait  bool
	}{
		{"", "/etc/kubernetes/kubelet.conf", true, true},
		{"https://192.0.2.1:6443", "/etc/kubernetes/kubelet.conf", true, false},
		{"https://192.0.2.1:6443", "", false, false},
		{"", "", false, false},
	} {
		for _, o := range renderFile(t, "uninstall.yaml", func(v map[string]any) { v["apiServer"], v["kubeletKubeconfig"] = tc.server, tc.config }) {
			text, want := fmt.Sprint(o), tc.cleanup
			switch o.(map[string]any)["kind"] {
			case "Job":
				if want = tc.wait; !want && strings.Contains(text, "hostPath") {
					t.Errorf("%+v: what waits sees the node's files: %s", tc, text)
				}
			case "DaemonSet":
			default:
				continue
			}
			if strings.Contains(text, "path:/etc/kubernetes]") != want || strings.Contains(text, "mountPath:/host/kubelet") != want || strings.Contains(text, "--kubelet-kubeconfig=/host/kubelet/kubelet.conf") != want || strings.Contains(text, "path:/etc]") {
				t.Errorf("%+v: %s", tc, text)
			}
		}
	}
}

// TestChart_uninstall: Helm's hooks take off what the uninstall manifest takes off, with
// what the values say of folders and rights; what waits for that may read one object.
func TestChart_uninstall(t *testing.T) {
	hooks := renderFile(t, "uninstall.yaml", func(map[string]any) {})
	var cleanup []any
	kinds := ""
	for _, o := range hooks {
		m := o.(map[string]any)
		meta := m["metadata"].(map[string]any)
		notes, _ := meta["annotations"].(map[string]any)
		if notes["helm.sh/hook"] != "post-delete" || notes["helm.sh/hook-delete-policy"] != "before-hook-creation,hook-succeeded" {
			t.Errorf("%v %v is no hook: %v", m["kind"], meta["name"], notes)
		}
		kinds += fmt.Sprint(m["kind"], " ", notes["helm.sh/hook-weight"], " ")
		if delete(meta, "annotations"); m["kind"] == "Namespace" || m["kind"] == "DaemonSet" {
			cleanup = append(cleanup, o)
		}
		if m["kind"] == "Role" && fmt.Sprint(m["rules"]) != "[map[apiGroups:[apps] resourceNames:[podlane-cleanup] resources:[daemonsets] verbs:[get]]]" {
			t.Errorf("rights: %v", m["rules"])
		}
	}
	if diff := cmp.Diff(objects(t, string(read(t, "podlane-uninstall.yaml"))), cleanup); diff != "" {
		t.Errorf("manifest -, chart +:\n%s", diff)
	}
	if want := "Namespace -3 ServiceAccount -2 Role -2 RoleBinding -2 DaemonSet -1 Job 0 "; kinds != want {
		t.Errorf("hooks %s, want %s", kinds, want)
	}
	for _, value := range []any{true, "remove"} {
		text := fmt.Sprint(renderFile(t, "uninstall.yaml", func(v map[string]any) {
			v["iptables"], v["kubeletKubeconfig"] = value, "/var/lib/rancher/kubeconfig"
			set(v, []string{"cni", "confDir"}, "/var/lib/net.d")
		}))
		for want, n := range map[string]int{"--iptables-root=/host/root": 1, "map[add:[NET_ADMIN NET_RAW SYS_CHROOT] drop:[ALL]]": 1, "--kubelet-kubeconfig=/host/kubelet/kubeconfig": 2, "hostPath:map[path:/var/lib/rancher] name:kubelet": 2, "hostPath:map[path:/var/lib] name:lib": 1, "path:/etc": 0, "path:/var/lib/net.d": 1, "path:/ type:Directory": 1} {
			if strings.Count(text, want) != n {
				t.Errorf("iptables %v: %q is there %d times, want %d", value, want, strings.Count(text, want), n)
			}
		}
	}
}
