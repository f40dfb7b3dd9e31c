package cni

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"
)

const wantConflist = `{
  "cniVersion": "1.0.0",
  "cniVersions": [
    "1.0.0",
    "1.1.0"
  ],
  "name": "podlane",
  "plugins": [
    {
      "type": "podlane-cni",
      "socket": "/run/podlane/agent.sock",
      "capabilities": {
        "bandwidth": true,
        "portMappings": true
      }
    }
  ]
}
`

func TestWriteConflist(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		if err := WriteConflist(dir, "/run/podlane/agent.sock"); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, ConflistName)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wantConflist, string(text)); diff != "" {
		t.Error(diff)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("%v %v, want mode 0644", info, err)
	}
	files, err := libcni.ConfFiles(dir, []string{".conf", ".conflist", ".json"})
	if err != nil || len(files) != 1 {
		t.Errorf("a runtime finds %v %v, want the one file", files, err)
	}
	list, err := libcni.ConfListFromFile(path)
	if err != nil || list.CNIVersion != "1.1.0" || list.Name != "podlane" || list.Plugins[0].Network.Type != PluginName {
		t.Errorf("libcni reads %+v %v", list, err)
	}
	if err := WriteConflist(filepath.Join(dir, "none"), "/x"); err == nil {
		t.Error("no error for a folder that is not there")
	}
}
