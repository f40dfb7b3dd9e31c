package dns

import (
	"fmt"
	"net/netip"
	"strings"
)

// Type is the type of a record or of a question (RFC 1035, section 3.2.2).
type Type uint16

// The types that the cluster zone has records of, and those that need care.
const (
	TypeA     Type = 1
	TypeNS    Type = 2
	TypeCNAME Type = 5
	TypeSOA   Type = 6
	TypePTR   Type = 12
	TypeHINFO Type = 13
	TypeMX    Type = 15
	TypeTXT   Type = 16
	TypeAAAA  Type = 28
	TypeSRV   Type = 33
	TypeOPT   Type = 41
	TypeHTTPS Type = 65
	TypeIXFR  Type = 251
	TypeAXFR  Type = 252
	TypeMAILB Type = 253
	TypeMAILA Type = 254
	TypeANY   Type = 255
)

var typeNames = map[Type]string{
	TypeA: "A", TypeNS: "NS", TypeCNAME: "CNAME", TypeSOA: "SOA", TypePTR: "PTR",
	TypeHINFO: "HINFO", TypeMX: "MX", TypeTXT: "TXT", TypeAAAA: "AAAA", TypeSRV: "SRV",
	TypeOPT: "OPT", TypeHTTPS: "HTTPS", TypeIXFR: "IXFR", TypeAXFR: "AXFR",
	TypeMAILB: "MAILB", TypeMAILA: "MAILA", TypeANY: "ANY",
}

// String gives the type's name, or TYPE123 (RFC 3597).
func (t Type) String() string {
	if s := typeNames[t]; s != "" {
		return s
	}
	return fmt.Sprintf("TYPE%d", uint16(t))
}

// Code is a response code (RFC 1035, section 4.1.1; RFC 6891, section 9).
type Code uint8

// The response codes that this server gives.
const (
	NoError  Code = 0
	FormErr  Code = 1
	ServFail Code = 2
	NXDomain Code = 3
	NotImp   Code = 4
	Refused  Code = 5
	BadVers  Code = 16
)

var codeNames = map[Code]string{
	NoError: "NOERROR", FormErr: "FORMERR", ServFail: "SERVFAIL", NXDomain: "NXDOMAIN",
	NotImp: "NOTIMP", Refused: "REFUSED", BadVers: "BADVERS",
}

// String gives the code's name as dig prints it.
func (c Code) String() string {
	if s := codeNames[c]; s != "" {
		return s
	}
	return fmt.Sprintf("RESERVED%d", uint8(c))
}

// Question is what a client asks of a Zone; the class is IN.
type Question struct {
	Name Name
	Type Type
	// Seed turns the order of several addresses: equal questions with different
	// seeds begin with different ones. The server gives the message's id.
	Seed uint16
}

// Answer is what a Zone says to a question. One that is used again keeps its
// memory.
type Answer struct {
	// Outside says that the name is not the zone's: ask elsewhere. Nothing else is
	// set then.
	Outside bool
	// Chase is set where Answer ends with a CNAME to a name outside the zone: what
	// that name has belongs behind it.
	Chase     Name
	Code      Code
	Answer    []Record
	Authority []Record
	Extra     []Record
}

// Record is one resource record of class IN. Which fields count follows from
// Type.
type Record struct {
	Name   Name // the empty Name: the question's
	Type   Type
	TTL    uint32     // seconds
	Addr   netip.Addr // A, AAAA
	Target Name       // CNAME, NS, PTR, SRV; of SOA the first name server
	Text   string     // TXT, HINFO
	SRV    SRV
	Serial uint32 // SOA
}

// SRV is the numbers of an SRV record (RFC 2782).
type SRV struct{ Priority, Weight, Port uint16 }

// The timers of the SOA record, in seconds. Nothing transfers this zone, so they
// only have to be plausible.
const (
	soaRefresh = 7200
	soaRetry   = 1800
	soaExpire  = 86400
)

func (a *Answer) reset() {
	*a = Answer{Answer: a.Answer[:0], Authority: a.Authority[:0], Extra: a.Extra[:0]}
}

// String gives the answer in the form of dig, with "@" for the question's name.
func (a *Answer) String() string {
	if a.Outside {
		return "outside\n"
	}
	var b strings.Builder
	fmt.Fprintln(&b, a.Code)
	for _, r := range a.Answer {
		fmt.Fprintln(&b, r)
	}
	if a.Chase != "" {
		fmt.Fprintln(&b, "; chase", a.Chase)
	}
	for _, r := range a.Authority {
		fmt.Fprintln(&b, "; authority", r)
	}
	for _, r := range a.Extra {
		fmt.Fprintln(&b, "; additional", r)
	}
	return b.String()
}

// String gives the record as a line of a zone file.
func (r Record) String() string {
	name := "@"
	if r.Name != "" {
		name = r.Name.String()
	}
	return fmt.Sprintf("%s %d IN %s %s", name, r.TTL, r.Type, r.data())
}

func (r Record) data() string {
	switch r.Type {
	case TypeA, TypeAAAA:
		return r.Addr.String()
	case TypeSRV:
		return fmt.Sprintf("%d %d %d %s", r.SRV.Priority, r.SRV.Weight, r.SRV.Port, r.Target)
	case TypeTXT, TypeHINFO:
		return fmt.Sprintf("%q", r.Text)
	case TypeSOA:
		return fmt.Sprintf("%s %s %d %d %d %d %d", r.Target, r.Name.child("hostmaster"),
			r.Serial, soaRefresh, soaRetry, soaExpire, r.TTL)
	}
	return r.Target.String()
}
