package cni

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
)

// TestHostPorts reads what containerd passes.
func TestHostPorts(t *testing.T) {
	var c netconf
	err := json.Unmarshal([]byte(`{"runtimeConfig": {"portMappings": [
		{"hostPort": 80, "containerPort": 8080, "protocol": "tcp", "hostIP": ""},
		{"hostPort": 53, "containerPort": 53, "protocol": "UDP", "hostIP": "0.0.0.0"},
		{"hostPort": 81, "containerPort": 81, "protocol": "tcp", "hostIP": "192.0.2.1"},
		{"hostPort": 0, "containerPort": 81, "protocol": "tcp"}, {"hostPort": 1, "containerPort": 1, "protocol": "icmp"},
		{"hostPort": 1, "containerPort": 1, "protocol": "tcp", "hostIP": "x"}]}}`), &c)
	if err != nil {
		t.Fatal(err)
	}
	a := Allocation{Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")}, Ports: c.RuntimeConfig.PortMappings}
	want := `[{TCP invalid AddrPort 10.0.0.2:8080} {TCP invalid AddrPort [fd00::2]:8080} {UDP invalid AddrPort 10.0.0.2:53} {TCP 192.0.2.1:81 10.0.0.2:81}]`
	if got := fmt.Sprint(a.HostPorts()); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
