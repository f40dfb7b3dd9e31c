package qperf

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Ticks: /proc/stat counts USER_HZ, which is 100 on every Linux; STAT is sent in
// microseconds, which the real client accepts and divides by just as well.
const (
	ticksPerSecond = 1_000_000
	userHZ         = 100
)

// cpuClocks reads the machine's CPU clocks in ticks of STAT; Real is left zero. Where /proc
// cannot be read all are zero, and the figures made of them are left out.
func cpuClocks() (c [clocks]uint64) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return c
	}
	line, _, _ := bytes.Cut(text, []byte("\n"))
	for i, f := range strings.Fields(string(line)) {
		if i == 0 || i >= clocks {
			continue
		}
		n, _ := strconv.ParseUint(f, 10, 64)
		c[i] = n * (ticksPerSecond / userHZ)
	}
	return c
}

// A cpuMeter takes the CPU clocks when the measurement starts and when its time is over, from beside the loop so that
// the loop is not held up: a loop may go on to wait for the last replies.
type cpuMeter struct {
	start, end reading
	stop, done chan struct{}
}

// A reading is of the machine's clocks and of the process's cgroup.
type reading struct {
	clocks [clocks]uint64
	group  *GroupTime
}

func readClocks() reading { return reading{cpuClocks(), readGroup(cgroups)} }

// startMeter takes the first reading at from, counted from now, and the last at until (0: when it is stopped).
func startMeter(from, until time.Duration) *cpuMeter {
	m := &cpuMeter{start: readClocks(), stop: make(chan struct{}), done: make(chan struct{})}
	go m.run(from, until)
	return m
}

func (m *cpuMeter) run(from, until time.Duration) {
	defer close(m.done)
	began := time.Now()
	if from > 0 && m.wait(time.After(from)) {
		m.start = readClocks()
	}
	var over <-chan time.Time
	if until > 0 {
		over = time.After(until - time.Since(began))
	}
	m.wait(over)
	m.end = readClocks()
}

// wait tells whether the moment came before the meter was stopped.
func (m *cpuMeter) wait(moment <-chan time.Time) bool {
	select {
	case <-moment:
		return true
	case <-m.stop:
		return false
	}
}

// stat stops the meter where its time is not over yet, makes a Stat out of the two readings and the elapsed time that
// the loop measured, and gives what the process's cgroup used between them.
func (m *cpuMeter) stat(elapsed time.Duration) (Stat, *GroupTime) {
	close(m.stop)
	<-m.done
	s := Stat{CPUs: uint32(runtime.NumCPU()), TicksPerSecond: ticksPerSecond, Start: m.start.clocks, End: m.end.clocks}
	s.Start[Real], s.End[Real] = 0, uint64(max(elapsed, 0).Microseconds())
	s.clamp()
	return s, m.end.group.since(m.start.group)
}

// CPUTime is what the measuring threads themselves used, in seconds. System is the time in their
// calls: the sockets' work for the data, and where the kernel carries a packet on within the
// call, the path's work too.
type CPUTime struct {
	User   float64 `json:"user"`
	System float64 `json:"system"`
}

func (c *CPUTime) add(d CPUTime)          { c.User, c.System = c.User+d.User, c.System+d.System }
func (c CPUTime) minus(d CPUTime) CPUTime { return CPUTime{c.User - d.User, c.System - d.System} }

// threadCPU is what the calling thread has used.
func threadCPU() CPUTime {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_THREAD, &u) != nil {
		return CPUTime{}
	}
	return CPUTime{float64(u.Utime.Nano()) / 1e9, float64(u.Stime.Nano()) / 1e9}
}

// ThisMachine is what conf says of this one.
func ThisMachine() Machine {
	m := Machine{Qperf: Version}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Node = unix.ByteSliceToString(u.Nodename[:])
		m.OS = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
	}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		m.CPU = cpuText(string(text))
	}
	return m
}

var cpuNoise = regexp.MustCompile(`(?i)\(R\)|\(TM\)|CPU |Processor `)

// cpuText makes qperf's line out of /proc/cpuinfo: "2 Cores: AMD EPYC 2.6GHz". Where there is no "model name" (arm64) it gives the
// number of CPUs alone; qperf leaves the field undefined.
func cpuText(cpuinfo string) string {
	var names, speeds []string
	for line := range strings.Lines(cpuinfo) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "model name":
			names = append(names, strings.TrimSpace(value))
		case "cpu MHz":
			speeds = append(speeds, strings.TrimSpace(value))
		}
	}
	if len(names) == 0 {
		return fmt.Sprintf("%d Cores", max(strings.Count(cpuinfo, "processor\t:"), 1))
	}
	text := "Mixed CPUs"
	if allEqual(names) && allEqual(speeds) {
		text = modelText(names[0], speeds)
	}
	if len(names) == 1 {
		return text
	}
	return fmt.Sprintf("%d Cores: %s", len(names), text)
}

func modelText(name string, speeds []string) string {
	name = strings.Join(strings.Fields(cpuNoise.ReplaceAllString(name+" ", "")), " ")
	if strings.HasSuffix(name, "Hz") || len(speeds) == 0 {
		return name
	}
	mhz, err := strconv.ParseFloat(speeds[0], 64)
	if err != nil {
		return name
	}
	if whole := int(mhz); whole < 1000 {
		return fmt.Sprintf("%s %dMHz", name, whole)
	}
	return fmt.Sprintf("%s %.1fGHz", name, float64(int(mhz))/1000)
}

func allEqual(list []string) bool {
	for _, s := range list {
		if s != list[0] {
			return false
		}
	}
	return true
}
