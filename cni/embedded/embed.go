//go:build embedshim

package embedded

import _ "embed"

//go:embed podlane-cni
var shim []byte
