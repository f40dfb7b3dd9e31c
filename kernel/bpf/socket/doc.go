// Package socket is the programs that translate Services at a pod's connect(), and
// the maps they read: Open loads and pins them, Write brings the maps to what
// proxy/ebpf wants. It decides nothing, and the nftables rules do not need it.
package socket
