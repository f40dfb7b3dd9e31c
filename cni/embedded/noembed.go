//go:build !embedshim

package embedded

// shim is empty in a build that was not told to embed the plugin: Install then
// installs the running program, which answers as the plugin itself.
var shim []byte
