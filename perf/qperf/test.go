// Package qperf speaks the protocol of qperf 0.4.11 both ways: its server serves the real
// qperf, its client runs against the real one, for tcp_bw, tcp_lat, udp_bw, udp_lat and conf.
// It is not a port of qperf: it knows no RDMA, and between two of its own kind an extension
// adds durations under a second, a warm-up and an account of what was lost.
package qperf

import (
	"fmt"
	"time"
)

// A Test is one of qperf's tests, by its name on the command line.
type Test string

// The tests that both sides know.
const (
	Conf         Test = "conf"    // the two machines, no measurement
	TCPBandwidth Test = "tcp_bw"  // one TCP stream, client to server
	TCPLatency   Test = "tcp_lat" // one message to and fro over TCP
	UDPBandwidth Test = "udp_bw"  // datagrams as fast as the client can, client to server
	UDPLatency   Test = "udp_lat" // one datagram to and fro
)

// Tests lists the four measurements, in the order in which reports show them.
var Tests = []Test{TCPBandwidth, TCPLatency, UDPBandwidth, UDPLatency}

// testIndex is REQ.req_index of each test. Index 1 (quit, which lets anybody stop the
// server) is not served.
var testIndex = map[Test]uint16{Conf: 0, TCPBandwidth: 8, TCPLatency: 9, UDPBandwidth: 10, UDPLatency: 11}

// ParseTest gives the test of that name.
func ParseTest(name string) (Test, error) {
	if _, ok := testIndex[Test(name)]; ok {
		return Test(name), nil
	}
	return "", fmt.Errorf("test %s: not one of conf, tcp_bw, tcp_lat, udp_bw, udp_lat", name)
}

func testOf(index uint16) (Test, bool) {
	for t, i := range testIndex {
		if i == index {
			return t, true
		}
	}
	return "", false
}

// Latency tells whether the test sends one message to and fro.
func (t Test) Latency() bool { return t == TCPLatency || t == UDPLatency }

// UDP tells whether the test's data goes over UDP.
func (t Test) UDP() bool { return t == UDPBandwidth || t == UDPLatency }

// Unit is that of the test's figure: "bytes/s" or "s".
func (t Test) Unit() string {
	if t.Latency() {
		return "s"
	}
	return "bytes/s"
}

// What qperf does when nobody says otherwise.
const (
	DefaultPort    = 19765
	DefaultTime    = 2 * time.Second
	DefaultTimeout = 5 * time.Second
)

// Sizes of a message in bytes. A datagram of 32 KiB, qperf's own default, goes in some 23
// fragments; FittingDatagram passes whole through a VXLAN overlay on an MTU of 1500.
const (
	qperfStream     = 64 << 10
	qperfDatagram   = 32 << 10
	FittingDatagram = 1400
	maxDatagram     = 65507
	maxStream       = 16 << 20
)

// DefaultSize is the size of a message of the test in bytes as qperf would choose it.
func (t Test) DefaultSize() int {
	switch t {
	case TCPBandwidth:
		return qperfStream
	case UDPBandwidth:
		return qperfDatagram
	case TCPLatency, UDPLatency:
		return 1
	}
	return 0
}

// checkSize refuses a message that the test cannot carry. The real server allocates what
// it is told, and counts millions of errors for a datagram that is too long.
func (t Test) checkSize(size int) error {
	limit := maxStream
	if t.UDP() {
		limit = maxDatagram
	}
	if size < 1 || size > limit {
		return fmt.Errorf("%s: msg_size %d: not from 1 to %d", t, size, limit)
	}
	return nil
}
