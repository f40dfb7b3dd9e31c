// Package lab runs a small Kubernetes cluster network on one machine: nodes and
// pods are network namespaces, a container is a process, and one holder process
// owns them all.
//
// It is not Kubernetes: what its control plane stand-in (lab/control) does not
// do is tested on a real cluster, and no image is ever pulled.
//
//	front (podlane lab ...)      holder: init of its own user, mount, PID and network namespaces
//	   │  DIR/lab.sock             │
//	   └──────────────────────────►│  its network namespace is the "outside" and has the underlay bridge
//	                               ├─ node n1: network namespace, eth0 on the bridge ── podlane agent
//	                               ├─ node n2: ...
//	                               └─ pod: network + mount + UTS namespace, wired by the CNI plugin ── its containers
package lab
