package qperf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"
)

// Everything on the wire has a fixed size and comes in a fixed order; integers are
// little-endian on every platform; there is no framing.
const (
	verMaj, verMin, verInc = 0, 4, 11

	versionSize = 6
	requestSize = 200
	portSize    = 4
	statSize    = 256 // 252 bytes of counters and 4 that the real one leaves undefined
	confSize    = 256

	syncBefore = "synchronization before test"
	syncAfter  = "synchronization after test"
)

// Version is the qperf whose protocol this is.
const Version = "0.4.11"

// request is REQ, what the client asks of the server.
type request struct {
	Major, Minor, Inc uint16
	Index             uint16
	MsgSize           uint32 // bytes
	Port              uint32 // data port wanted, 0 = any
	SockBuf           uint32 // bytes, 0 = as it is
	Time              uint32 // whole seconds, 0 = no timer
	Timeout           uint32 // whole seconds
	Extension         extension
}

// extension rides in REQ.id, 64 bytes that the real qperf leaves zero and does not read for
// socket tests. A server that knows it says so in the upper half of the port message, which
// is zero otherwise, so neither side ever assumes it.
type extension struct {
	On       bool
	Duration time.Duration // takes the place of REQ.time
	Warmup   time.Duration // traffic before the clock starts
	Nonce    uint32        // in every datagram of the test that has room for it
	Streams  uint32        // data connections; 0 and 1 are one
}

const (
	extensionOffset = 72
	extensionMagic  = 0x6e6c6450 // "Pdln"
	portAck         = 0xd1e9     // upper half of the port message: extension understood
)

func (e extension) encode(b []byte) {
	if !e.On {
		return
	}
	le := binary.LittleEndian
	le.PutUint32(b[0:], extensionMagic)
	le.PutUint32(b[4:], 1)
	le.PutUint64(b[8:], uint64(e.Duration))
	le.PutUint64(b[16:], uint64(e.Warmup))
	le.PutUint32(b[24:], e.Nonce)
	le.PutUint32(b[28:], e.Streams)
}

func decodeExtension(b []byte) extension {
	le := binary.LittleEndian
	if le.Uint32(b[0:]) != extensionMagic || le.Uint32(b[4:]) != 1 {
		return extension{}
	}
	return extension{On: true, Duration: time.Duration(le.Uint64(b[8:])), Warmup: time.Duration(le.Uint64(b[16:])), Nonce: le.Uint32(b[24:]), Streams: le.Uint32(b[28:])}
}

func (r request) encode() []byte {
	b := make([]byte, requestSize)
	le := binary.LittleEndian
	le.PutUint16(b[0:], r.Major)
	le.PutUint16(b[2:], r.Minor)
	le.PutUint16(b[4:], r.Inc)
	le.PutUint16(b[6:], r.Index)
	le.PutUint32(b[24:], r.MsgSize)
	le.PutUint32(b[40:], r.Port)
	le.PutUint32(b[52:], r.SockBuf)
	le.PutUint32(b[60:], r.Time)
	le.PutUint32(b[64:], r.Timeout)
	r.Extension.encode(b[extensionOffset:])
	return b
}

func decodeRequest(b []byte) request {
	le := binary.LittleEndian
	return request{
		Major: le.Uint16(b[0:]), Minor: le.Uint16(b[2:]), Inc: le.Uint16(b[4:]), Index: le.Uint16(b[6:]),
		MsgSize: le.Uint32(b[24:]), Port: le.Uint32(b[40:]), SockBuf: le.Uint32(b[52:]),
		Time: le.Uint32(b[60:]), Timeout: le.Uint32(b[64:]),
		Extension: decodeExtension(b[extensionOffset:]),
	}
}

// checkVersion is qperf's rule: the last number does not matter. The texts are its own.
func (r request) checkVersion() error {
	theirs := fmt.Sprintf("%d.%d.%d", r.Major, r.Minor, r.Inc)
	switch a, b := int(r.Major)<<16|int(r.Minor), verMaj<<16|verMin; {
	case a > b:
		return fmt.Errorf("upgrade qperf on server from %s to %s", Version, theirs)
	case a < b:
		return fmt.Errorf("upgrade qperf on client from %s to %s", theirs, Version)
	}
	return nil
}

// Counters are what went one way.
type Counters struct {
	Bytes    uint64 `json:"bytes"`
	Messages uint64 `json:"messages"`
	Errors   uint64 `json:"errors"` // calls that failed, not counting those that the end of the test broke off
}

func (c *Counters) add(d Counters) {
	c.Bytes += d.Bytes
	c.Messages += d.Messages
	c.Errors += d.Errors
}

// Indexes into Stat.Start and Stat.End. Real is wall time; the others are the first eight
// numbers of the line "cpu" in /proc/stat: the whole machine, all CPUs.
const (
	Real = iota
	User
	Nice
	Kernel
	Idle
	IOWait
	IRQ
	SoftIRQ
	Steal
	clocks
)

// Stat is what one side counted: STAT on the wire. Times are in ticks, whose length TicksPerSecond gives.
type Stat struct {
	CPUs           uint32         `json:"cpus"`
	TicksPerSecond uint32         `json:"ticks_per_second"`
	Start          [clocks]uint64 `json:"start"` // real user nice kernel idle iowait irq softirq steal
	End            [clocks]uint64 `json:"end"`
	Sent           Counters       `json:"sent"`
	Received       Counters       `json:"received"`
	RemoteSent     Counters       `json:"-"` // RDMA only
	RemoteReceived Counters       `json:"-"` // RDMA only
}

func (s *Stat) words() []*uint64 {
	var w []*uint64
	for i := range s.Start {
		w = append(w, &s.Start[i])
	}
	for i := range s.End {
		w = append(w, &s.End[i])
	}
	for _, c := range []*Counters{&s.Sent, &s.Received, &s.RemoteSent, &s.RemoteReceived} {
		w = append(w, &c.Bytes, &c.Messages, &c.Errors)
	}
	return w
}

// encode gives the 256 bytes. The last four, undefined in the real one, carry the length of the
// trailer that follows when the extension is on.
func (s Stat) encode(trailer int) []byte {
	b := make([]byte, statSize)
	le := binary.LittleEndian
	le.PutUint32(b[0:], s.CPUs)
	le.PutUint32(b[4:], s.TicksPerSecond)
	for i, w := range s.words() {
		le.PutUint64(b[12+8*i:], *w)
	}
	le.PutUint32(b[252:], uint32(trailer))
	return b
}

func decodeStat(b []byte) (s Stat, trailer int) {
	le := binary.LittleEndian
	s.CPUs, s.TicksPerSecond = le.Uint32(b[0:]), le.Uint32(b[4:])
	for i, w := range s.words() {
		*w = le.Uint64(b[12+8*i:])
	}
	s.clamp()
	return s, int(le.Uint32(b[252:]))
}

// clamp keeps clocks from running backwards: iowait of /proc/stat does, and the
// difference, being unsigned, would be enormous.
func (s *Stat) clamp() {
	for i := range s.End {
		s.End[i] = max(s.End[i], s.Start[i])
	}
}

// Machine is one side's answer to conf.
type Machine struct {
	Node  string `json:"node"`
	CPU   string `json:"cpu"`
	OS    string `json:"os"`
	Qperf string `json:"qperf"`
}

func (m *Machine) fields() []*string { return []*string{&m.Node, &m.CPU, &m.OS, &m.Qperf} }

func (m Machine) encode() []byte {
	b := make([]byte, confSize)
	for i, f := range m.fields() {
		copy(b[64*i:64*i+63], *f)
	}
	return b
}

// decodeMachine cuts each string at its NUL: what follows is uninitialised memory.
func decodeMachine(b []byte) (m Machine) {
	for i, f := range m.fields() {
		text, _, _ := bytes.Cut(b[64*i:64*i+64], []byte{0})
		*f = string(text)
	}
	return m
}
