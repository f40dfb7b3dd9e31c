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

// The tests of qperf.
const (
	Conf         Test = "conf"    // the two machines, no measurement
	TCPBandwidth Test = "tcp_bw"  // one TCP stream, client to server
	TCPLatency   Test = "tcp_lat" // one message to and fro over TCP
	UDPBandwidth Test = "udp_bw"  // datagrams as fast as the client can, client to server
	UDPLatency   Test = "udp_lat" // one datagram to and fro
)

// Tests of our own. All but UDPPackets need a server of our kind.
const (
	Rest       Test = "idle"        // nothing is sent: what the machines do anyway
	TCPConnect Test = "tcp_crr"     // connect, one byte to and fro, close: connections a second
	TCPStreams Test = "tcp_streams" // several TCP streams at once
	UDPPackets Test = "udp_pps"     // udp_bw with 64 bytes: packets a second
	UDPOpen    Test = "udp_open"    // datagrams to and fro at a fixed rate, timed from when each should have been sent
	UDPSearch  Test = "udp_max"     // the highest rate of datagrams without loss, and with 0.5 %
)

// Tests lists the four measurements of qperf, in the order in which reports show them.
var Tests = []Test{TCPBandwidth, TCPLatency, UDPBandwidth, UDPLatency}

// AllTests lists every measurement.
var AllTests = []Test{TCPBandwidth, TCPStreams, TCPLatency, TCPConnect, UDPBandwidth, UDPSearch, UDPPackets, UDPLatency, UDPOpen}

// A form is what a test is on the wire, and what its figure is.
type form struct {
	served  Test   // what the server is asked for
	index   uint16 // REQ.req_index of that. 1 (quit, which lets anybody stop the server) is not served
	udp     bool   // the data's protocol
	latency bool   // the figure is a time, and lower is better
	own     bool   // needs a server of our kind
	unit    string
}

var forms = map[Test]form{
	Conf:         {Conf, 0, false, false, false, ""},
	TCPBandwidth: {TCPBandwidth, 8, false, false, false, "bytes/s"},
	TCPLatency:   {TCPLatency, 9, false, true, false, "s"},
	UDPBandwidth: {UDPBandwidth, 10, true, false, false, "bytes/s"},
	UDPLatency:   {UDPLatency, 11, true, true, false, "s"},
	UDPPackets:   {UDPBandwidth, 10, true, false, false, "packets/s"},
	UDPSearch:    {UDPBandwidth, 10, true, false, true, "bytes/s"},
	UDPOpen:      {UDPLatency, 11, true, true, true, "s"},
	Rest:         {Rest, 101, true, false, true, ""},
	TCPConnect:   {TCPConnect, 102, false, false, true, "1/s"},
	TCPStreams:   {TCPStreams, 103, false, false, true, "bytes/s"},
}

// ParseTest gives the test of that name.
func ParseTest(name string) (Test, error) {
	if _, ok := forms[Test(name)]; ok {
		return Test(name), nil
	}
	return "", fmt.Errorf("test %s: not one of conf, tcp_bw, tcp_lat, udp_bw, udp_lat, tcp_crr, tcp_streams, udp_pps, udp_open, udp_max, idle", name)
}

// testOf is the test that a server is asked for.
func testOf(index uint16) (Test, bool) {
	for t, f := range forms {
		if f.index == index && f.served == t {
			return t, true
		}
	}
	return "", false
}

// Latency tells whether the test's figure is a time, of which less is better.
func (t Test) Latency() bool { return forms[t].latency }

// UDP tells whether the test's data goes over UDP.
func (t Test) UDP() bool { return forms[t].udp }

// Unit is that of the test's figure: "bytes/s", "packets/s", "1/s" or "s".
func (t Test) Unit() string { return forms[t].unit }

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
	smallDatagram   = 64 // of udp_pps and udp_open
)

// MaxStreams is the most that tcp_streams may have.
const MaxStreams = 64

// DefaultSize is the size of a message of the test in bytes as qperf would choose it.
func (t Test) DefaultSize() int {
	switch t {
	case TCPBandwidth:
		return qperfStream
	case UDPBandwidth:
		return qperfDatagram
	case TCPStreams:
		return qperfStream
	case UDPPackets, UDPOpen:
		return smallDatagram
	case UDPSearch:
		return FittingDatagram
	case TCPLatency, UDPLatency, TCPConnect, Rest:
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
