package observe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/conntrack"
	"github.com/podlane/podlane/kernel/nft"
)

// Sighting is what one node saw of a probe's connection.
type Sighting struct {
	Node string `json:"node"`
	// Seen says that a packet of the connection came by the packet filter.
	Seen bool `json:"seen"`
	// End is where the packet filter ended one of its packets: the table, chain and
	// rule, or empty.
	End string `json:"end,omitempty"`
	// Steps are the chains and rules that its packets met.
	Steps []string `json:"steps,omitempty"`
	// Flows are the connection's entries in conntrack.
	Flows []FlowSeen `json:"flows,omitempty"`
	// Problem says why there was no trace.
	Problem string `json:"problem,omitempty"`
}

// FlowSeen is a conntrack entry.
type FlowSeen struct {
	Orig  conntrack.Tuple `json:"orig"`
	Reply conntrack.Tuple `json:"reply"`
}

// Tracer marks the packets of one connection, told by its port, so that the
// kernel reports every rule they meet.
type Tracer struct {
	conn     *nft.Conn
	table    nft.Table
	events   *netlink.Conn
	Port     uint16
	Protocol cluster.Protocol
	V6       bool
}

// The attributes of NFT_MSG_TRACE (include/uapi/linux/netfilter/nf_tables.h).
const (
	msgTrace        = unix.NFNL_SUBSYS_NFTABLES<<8 | 17
	groupTrace      = 9
	traceTable      = 1
	traceChain      = 2
	traceHandle     = 3
	traceType       = 4
	traceVerdict    = 5
	traceTransport  = 9
	traceNFProto    = 15
	tracePolicy     = 16
	verdictCode     = 1
	traceTypePolicy = 1
	traceTypeRule   = 3
)

// beforeAll is ahead of every other chain's priority.
const beforeAll int32 = -350

// StartTrace adds a table of its own to the calling thread's network namespace, which Stop removes; where this process is
// killed, the kernel does. One before Linux 5.12 does not: there the table stays, without effect on other packets, until
// `podlane agent --cleanup`.
func StartTrace(protocol cluster.Protocol, port uint16, v6 bool) (*Tracer, error) {
	events, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	if err := events.JoinGroup(groupTrace); err != nil {
		_ = events.Close()
		return nil, fmt.Errorf("trace: %w", err)
	}
	conn, err := nft.Dial(0)
	if err != nil {
		_ = events.Close()
		return nil, err
	}
	t := &Tracer{conn: conn, events: events, Port: port, Protocol: protocol, V6: v6, table: nft.Table{Family: nft.FamilyOf(v6), Name: traceName(port)}}
	err = conn.Commit(t.rules((*nft.Tx).AddOwnedTable))
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		err = conn.Commit(t.rules((*nft.Tx).AddTable))
	}
	if err != nil {
		_, _ = conn.Close(), events.Close()
		return nil, fmt.Errorf("trace: %w", err)
	}
	return t, nil
}

func (t *Tracer) rules(addTable func(*nft.Tx, nft.Table)) *nft.Tx {
	tx := &nft.Tx{}
	addTable(tx, t.table)
	protocol := nft.L4Is(uint8(t.Protocol), strings.ToLower(t.Protocol.String()))
	for _, chain := range []nft.Chain{
		{Table: t.table, Name: "in", Hook: nft.Prerouting, Type: "filter", Priority: beforeAll},
		{Table: t.table, Name: "out", Hook: nft.Output, Type: "filter", Priority: beforeAll},
	} {
		tx.AddChain(chain)
		tx.AddRule(chain, nft.NewRule(protocol, nft.SportIs(t.Port), nft.Trace()))
		tx.AddRule(chain, nft.NewRule(protocol, nft.DportIs(t.Port), nft.Trace()))
	}
	return tx
}

func traceName(port uint16) string { return fmt.Sprintf("%strace-%d", nft.Prefix, port) }

// Tracing waits until a Tracer of that port is at work in the calling thread's
// network namespace, and gives false where none is in time.
func Tracing(ctx context.Context, port uint16, v6 bool) (bool, error) {
	conn, err := nft.Dial(0)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	table := nft.Table{Family: nft.FamilyOf(v6), Name: traceName(port)}
	for {
		tables, err := conn.Tables()
		if err != nil || slices.Contains(tables, table) {
			return err == nil, err
		}
		select {
		case <-ctx.Done():
			return false, nil
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Stop removes the table.
func (t *Tracer) Stop() error {
	tx := &nft.Tx{}
	tx.DeleteTable(t.table)
	return errors.Join(t.conn.Commit(tx), t.conn.Close(), t.events.Close())
}

// Collect reads what the kernel reports until ctx ends, and then the connection's
// conntrack entries.
func (t *Tracer) Collect(ctx context.Context) Sighting {
	s := Sighting{}
	met := map[string]bool{}
	defer context.AfterFunc(ctx, func() { _ = t.events.SetReadDeadline(time.Now()) })()
	for ctx.Err() == nil {
		msgs, err := t.events.Receive()
		if err != nil {
			break
		}
		for _, m := range msgs {
			if m.Header.Type == msgTrace && len(m.Data) > 4 {
				t.note(&s, met, m.Data[4:])
			}
		}
	}
	var err error
	if s.Flows, err = Flows(t.Protocol, t.Port, t.V6); err != nil {
		s.Problem = err.Error()
	}
	return s
}

func (t *Tracer) note(s *Sighting, met map[string]bool, data []byte) {
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return
	}
	ad.ByteOrder = binary.BigEndian
	var table, chain string
	var handle uint64
	var typ, policy uint32
	code := int32(-1)
	for ad.Next() {
		switch ad.Type() {
		case traceTable:
			table = ad.String()
		case traceChain:
			chain = ad.String()
		case traceHandle:
			handle = ad.Uint64()
		case traceType:
			typ = ad.Uint32()
		case tracePolicy:
			policy = ad.Uint32()
		case traceVerdict:
			ad.Nested(func(n *netlink.AttributeDecoder) error {
				for n.Next() {
					if n.Type() == verdictCode {
						code = int32(n.Uint32())
					}
				}
				return nil
			})
		}
	}
	s.Seen = true
	if table == t.table.Name {
		return
	}
	step := fmt.Sprintf("table %s chain %s", table, chain)
	ends := typ == traceTypePolicy && policy == 0
	if typ == traceTypeRule {
		step += fmt.Sprintf(" rule handle %d", handle)
		ends = code == 0
	} else if ends {
		step += " policy drop"
	}
	if !met[step] {
		met[step] = true
		s.Steps = append(s.Steps, step)
	}
	if ends && s.End == "" {
		s.End = step
	}
}

// Flows gives the conntrack entries of connections of which a port is part.
func Flows(protocol cluster.Protocol, port uint16, v6 bool) ([]FlowSeen, error) {
	conn, err := conntrack.Dial(0)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var list []FlowSeen
	err = conn.Each(uint8(protocol), v6, func(f conntrack.Flow) {
		if f.Orig.Src.Port() == port || f.Reply.Dst.Port() == port {
			list = append(list, FlowSeen{f.Orig, f.Reply})
		}
	})
	if errors.Is(err, conntrack.ErrPartial) {
		err = nil
	}
	return list, err
}
