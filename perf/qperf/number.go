package qperf

import (
	"cmp"
	"strconv"
	"strings"
)

// A Style is how qperf writes numbers.
type Style struct {
	Precision int  // digits; 0 means qperf's own 3, -1 none
	Bits      bool // bandwidths in bits
	Base      bool // base units, not scaled, no commas
}

type kind int

const (
	asTime kind = iota
	asBandwidth
	asRate
	asCost
	asCPU
	asSize
	asCount
)

var units = map[kind][]string{
	asTime:      {"ns", "us", "ms", "sec"},
	asBandwidth: {"bytes/sec", "KB/sec", "MB/sec", "GB/sec", "TB/sec"},
	asRate:      {"/sec", "K/sec", "M/sec", "G/sec", "T/sec"},
	asCost:      {"ns/GB", "us/GB", "ms/GB", "sec/GB"},
	asCPU:       {"% cpus"},
	asSize:      {"bytes", "KB", "MB", "GB", "TB"},
	asCount:     {"", "thousand", "million", "billion", "trillion"},
}

var (
	bitUnits    = []string{"bits/sec", "Kb/sec", "Mb/sec", "Gb/sec", "Tb/sec"}
	binaryUnits = []string{"bytes", "KiB", "MiB", "GiB", "TiB"}
	toBase      = map[kind]float64{asTime: 1e9, asCost: 1e9, asCPU: 100}
)

// A number is a figure as text: its digits, its unit, and for some sizes another way to say it.
type number struct{ digits, unit, other string }

// format scales a value (seconds, bytes/s, 1/s, s/GB, CPUs, bytes, n) and writes it.
func (s Style) format(v float64, k kind) number {
	names := units[k]
	if f := toBase[k]; f != 0 {
		v *= f
	}
	if k == asBandwidth && s.Bits {
		v, names = v*8, bitUnits
	}
	if s.Base {
		return number{digits: s.digits(v), unit: names[0]}
	}
	if n, ok := s.binary(v, k); ok {
		return n
	}
	if k == asCount && v < 1e6 {
		return number{digits: commas(strconv.FormatFloat(v, 'f', 0, 64))}
	}
	i := 0
	for ; v >= 1000 && i < len(names)-1; i++ {
		v /= 1000
	}
	return number{digits: commas(s.digits(v)), unit: names[i]}
}

// binary writes a size that is a whole number of KiB or more, with the exact number beside it.
func (s Style) binary(v float64, k kind) (number, bool) {
	n := int64(v)
	if k != asSize || n < 1024 || n%1024 != 0 {
		return number{}, false
	}
	i, whole := 0, n
	for ; whole%1024 == 0 && i < len(binaryUnits)-1; i++ {
		whole /= 1024
	}
	return number{commas(strconv.FormatInt(whole, 10)), binaryUnits[i], commas(strconv.FormatInt(n, 10))}, true
}

// digits keeps Precision digits, but never less than the whole part, and no trailing zeros.
func (s Style) digits(v float64) string {
	whole := strconv.FormatFloat(v, 'f', 0, 64)
	left := cmp.Or(s.Precision, 3) - len(whole)
	if left <= 0 {
		return whole
	}
	text := strconv.FormatFloat(v, 'f', left, 64)
	return strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
}

func commas(text string) string {
	whole, rest, _ := strings.Cut(text, ".")
	var b strings.Builder
	for i, c := range whole {
		if i > 0 && (len(whole)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(c)
	}
	if rest != "" {
		b.WriteString("." + rest)
	}
	return b.String()
}

// Format writes a test's figure as qperf would: "1.25 GB/sec", "47.1 us", "12.3 K/sec".
func (t Test) Format(v float64) string {
	k := asBandwidth
	switch t.Unit() {
	case "s":
		k = asTime
	case "1/s", "packets/s":
		k = asRate
	}
	n := Style{}.format(v, k)
	return n.digits + " " + n.unit
}
