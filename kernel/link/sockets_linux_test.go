package link

import (
	"net"
	"testing"
)

// listenUDP listens in the calling thread's namespace.
func listenUDP(t *testing.T, port int) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
	if err != nil {
		t.Fatal(err)
	}
	return c
}
