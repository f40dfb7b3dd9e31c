// Command podlane-cni is the CNI plugin that `podlane agent` writes into the
// container runtime's plugin folder. All it does is in package shim; all that
// concerns the network is in the agent.
package main

import (
	"os"

	"github.com/podlane/podlane/cni/shim"
)

func main() {
	os.Exit(shim.Main(os.Getenv, os.Stdin, os.Stdout, os.Stderr))
}
