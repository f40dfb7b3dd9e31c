package nft

import (
	"encoding/binary"
	"fmt"
)

// SportIs matches packets of TCP, UDP and SCTP from a port. The transport protocol must be matched first.
func SportIs(port uint16) Part { return portIs("th sport", 0, port) }

// DportIs matches packets to a port, likewise.
func DportIs(port uint16) Part { return portIs("th dport", 2, port) }

func portIs(text string, offset uint32, port uint16) Part {
	return Part{fmt.Sprintf("%s %d", text, port), []op{
		payload(text, transportHeader, offset, 2).load(reg32), cmp(true, binary.BigEndian.AppendUint16(nil, port)),
	}}
}

const metaTrace = 12

// Trace has the kernel report every rule that the packet meets from here on.
func Trace() Part {
	one := op{"immediate", attrs(nil).u32(1, reg32).value(2, []byte{1})}
	return Part{"meta nftrace set 1", []op{one, storeMeta(metaTrace)}}
}
