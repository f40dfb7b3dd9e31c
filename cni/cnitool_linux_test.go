package cni

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// steps are what the CNI project's own cnitool does with the plugin, as a person would
// run it. Its results go to /var/lib/cni, which is not the machine's here.
const steps = `set -e
mount -t tmpfs tmpfs /var/lib
step() { echo "== $1"; "$TOOL" "$1" podlane "$NETNS"; }
step status
step add
step check
step del
step del
if step check; then echo 'CHECK passes after DEL'; exit 1; fi
step add
step gc || echo GC is refused
`

// TestCNITool runs the CNI project's tool for trying plugins. Its gc has the library
// delete what it knows of, and then asks for GC without the list of what is valid: by the
// specification that list is there, and all pods of a node are too much for a guess.
func TestCNITool(t *testing.T) {
	n := newNode(t, bothFamilies).start()
	tool, conf := filepath.Join(t.TempDir(), "cnitool"), t.TempDir()
	build := exec.Command("go", "build", "-buildvcs=false", "-o", tool, "github.com/containernetworking/cni/cnitool")
	if out, err := build.CombinedOutput(); err != nil {
		t.Skipf("cnitool cannot be built here: %v: %s", err, out)
	}
	if err := WriteConflist(conf, filepath.Join(n.dir, "agent.sock")); err != nil {
		t.Fatal(err)
	}
	p := newPod(t, "any")
	cmd := exec.Command("sh", "-c", steps)
	cmd.Env = append(os.Environ(), "TOOL="+tool, "NETNS="+p.path, "CNI_PATH="+n.bin, "NETCONFPATH="+conf, `CAP_ARGS={"bandwidth":{}}`)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	text := string(out)
	if err != nil || !strings.Contains(text, `"cniVersion": "1.1.0"`) || !strings.Contains(text, fmt.Sprintf("%q: %q", "address", "10.1.2.2/32")) ||
		!strings.Contains(text, "lacks \"cni.dev/valid-attachments\"\nGC is refused") {
		t.Errorf("%v:\n%s", err, text)
	}
	n.empty()
}
