package lab

import (
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// The images that a lab knows, by the last part of the image's name. A container
// without a command gets a stand-in, chosen by image name and ports alone:
//
//	servers    HTTP on the TCP ports (80 where none is given), a datagram answer on
//	           the UDP ports; both say which pod answers and whom it sees
//	sleepers   wait; their args, if any, are run as a command
//	qperf      `podlane perf server` on the first TCP port
//	podlane/dns  `podlane dns` over the lab's cluster folder
//
// Any other image is a server where the container has ports, and a sleeper
// where it has none.
var (
	servers  = []string{"nginx", "nginx-unprivileged", "httpd", "caddy", "whoami", "echoserver", "echo-server", "http-echo", "agnhost", "hello-app"}
	sleepers = []string{"pause", "busybox", "alpine", "debian", "ubuntu", "fedora", "curl", "netshoot", "dnsutils", "toolbox"}
)

// imageName gives "nginx" of "docker.io/library/nginx:1.27@sha256:...".
func imageName(image string) string {
	image, _, _ = strings.Cut(image, "@")
	name := path.Base(image)
	name, _, _ = strings.Cut(name, ":")
	return name
}

// standInFor gives the command that stands for the container's image, and what
// to call it.
func standInFor(c *corev1.Container, args []string, p *pod) (argv []string, runs string) {
	name := imageName(c.Image)
	runs = name + " stand-in"
	podlane := p.h.program()
	switch {
	case name == "dns" && strings.Contains(c.Image, "podlane/"):
		return append([]string{podlane, "dns", "--manifests", p.h.dir + "/cluster"}, args...), "podlane dns"
	case strings.Contains(name, "qperf"):
		if len(args) == 0 {
			args = []string{"--lp", fmt.Sprint(firstPort(c, corev1.ProtocolTCP, 19765))}
		}
		return append([]string{podlane, "perf", "server"}, args...), runs + " (podlane perf server)"
	case slices.Contains(sleepers, name) && len(args) > 0:
		return args, strings.Join(args, " ")
	case !slices.Contains(servers, name) && len(c.Ports) == 0:
		return []string{podlane, "lab", "stand-in", "--image", name, "--pod", p.want.Name}, runs + " (waits)"
	}
	argv = []string{podlane, "lab", "stand-in", "--image", name, "--pod", p.want.Name}
	for _, port := range serverPorts(c) {
		argv = append(argv, "--port", fmt.Sprintf("%d/%s", port.ContainerPort, protocolName(port)))
	}
	return argv, runs
}

// serverPorts gives the container's ports, or that of HTTP.
func serverPorts(c *corev1.Container) []corev1.ContainerPort {
	if len(c.Ports) == 0 {
		return []corev1.ContainerPort{{ContainerPort: 80}}
	}
	return c.Ports
}

func firstPort(c *corev1.Container, protocol corev1.Protocol, otherwise int32) int32 {
	for _, p := range c.Ports {
		if p.Protocol == protocol || p.Protocol == "" && protocol == corev1.ProtocolTCP {
			return p.ContainerPort
		}
	}
	return otherwise
}
