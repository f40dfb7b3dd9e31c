package cni

import (
	"encoding/json"
	"fmt"
	"path/filepath"
)

// ConflistName is the network configuration's file. A runtime takes the first of
// the folder by name.
const ConflistName = "05-podlane.conflist"

// NetworkName is the network's name in the configuration.
const NetworkName = "podlane"

// PluginName is the plugin's file in the runtime's plugin folder.
const PluginName = "podlane-cni"

type conflist struct {
	CNIVersion  string           `json:"cniVersion"`
	CNIVersions []string         `json:"cniVersions"`
	Name        string           `json:"name"`
	Plugins     []conflistPlugin `json:"plugins"`
}

type conflistPlugin struct {
	Type   string `json:"type"`
	Socket string `json:"socket"`
	// Capabilities are what the runtime may pass in runtimeConfig.
	Capabilities map[string]bool `json:"capabilities"`
}

// Conflist renders the network configuration for an agent that listens on the
// socket. cniVersion is for runtimes that do not know 1.1.0 (containerd 1.7 with
// libcni 1.1 refuses it) and ignore cniVersions; the others take the highest,
// and with it STATUS and GC.
func Conflist(socket string) []byte {
	text, err := json.MarshalIndent(conflist{
		CNIVersion:  "1.0.0",
		CNIVersions: []string{"1.0.0", "1.1.0"},
		Name:        NetworkName,
		Plugins:     []conflistPlugin{{Type: PluginName, Socket: socket, Capabilities: map[string]bool{"portMappings": true, "bandwidth": true}}},
	}, "", "  ")
	if err != nil {
		panic(err) // strings alone: cannot happen
	}
	return append(text, '\n')
}

// WriteConflist writes the network configuration into the runtime's folder
// (/etc/cni/net.d) in one step. The runtime takes its presence for a node that
// can serve pods, so it is written when, and only when, that is true.
func WriteConflist(dir, socket string) error {
	path := filepath.Join(dir, ConflistName)
	if err := writeFile(path, Conflist(socket), 0o644, true); err != nil {
		return fmt.Errorf("network configuration %s: %w", path, err)
	}
	return nil
}
