package shim

import (
	"encoding/json"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netns"

	"github.com/podlane/podlane/internal/nettest"
)

// TestLoopback has lo of a new namespace down before ADD and up after it; every
// other command of the runtime succeeds.
func TestLoopback(t *testing.T) {
	nettest.New(t)
	pod, err := netns.New() // enters it
	if err != nil {
		t.Fatal(err)
	}
	defer pod.Close()
	path := func(ns netns.NsHandle) string { return "/proc/self/fd/" + strconv.Itoa(int(ns)) }
	flags := func() string {
		lo, err := net.InterfaceByName("lo")
		if err != nil {
			t.Fatal(err)
		}
		return lo.Flags.String()
	}
	if strings.Contains(flags(), "up") {
		t.Fatal("lo is up before ADD")
	}
	conf := `{"cniVersion":"0.3.1","name":"cni-loopback","type":"loopback"}`
	var have map[string]any
	var status int
	elsewhere := nettest.Make(t)
	nettest.Do(t, elsewhere, func() { have, status = run(t, env("ADD", "CNI_IFNAME", "lo", "CNI_NETNS", path(pod)), conf) })
	text, _ := json.Marshal(have)
	if status != 0 || have["cniVersion"] != "0.3.1" || !strings.Contains(string(text), `"address":"127.0.0.1/8"`) {
		t.Errorf("ADD: %d %s", status, text)
	}
	if !strings.Contains(flags(), "up") {
		t.Errorf("lo is %s after ADD", flags())
	}
	for _, command := range []string{"CHECK", "DEL"} {
		if have, status := run(t, env(command, "CNI_IFNAME", "lo", "CNI_NETNS", "/gone"), conf); status != 0 || have != nil {
			t.Errorf("%s: %d %v", command, status, have)
		}
	}
	old := strings.Replace(conf, "0.3.1", "0.2.0", 1)
	if have, status := run(t, env("ADD", "CNI_NETNS", "/gone"), old); status != 1 || have["code"] != 1.0 {
		t.Errorf("ADD of 0.2.0: %d %v", status, have)
	}
}
