package dns

import (
	"container/list"
	"encoding/binary"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// cacheKey is what makes two questions to the outside the same one.
type cacheKey struct {
	name   Name
	kind   Type
	do, cd bool
}

func (q *query) key() cacheKey {
	return cacheKey{q.Name, q.Type, q.do, q.flags&flagCD != 0}
}

// stored is an answer from outside. It never changes.
type stored struct {
	msg  []byte   // a whole message without OPT record
	ttls []uint16 // the offsets of its TTLs
	at   time.Time
	ttl  time.Duration // how long it may be given; 0: to this client alone
	code Code
}

// store makes the stored form of a message, which keeps nothing of m.
func store(m *dns.Msg, at time.Time, maxPositive, maxNegative time.Duration) (*stored, error) {
	ttl := lifetime(m, maxPositive, maxNegative)
	m.Extra = withoutOPT(m.Extra)
	m.Rcode &= 0xf
	m.Compress = true
	b, err := m.Pack()
	if err != nil {
		return nil, err
	}
	s := &stored{msg: b, at: at, ttl: ttl, code: Code(m.Rcode)}
	next := headerSize
	if len(m.Question) == 1 {
		next = skipName(b, headerSize) + 4
	}
	for range len(m.Answer) + len(m.Ns) + len(m.Extra) {
		r, ok := recordAt(b, next)
		if !ok {
			return nil, errBroken
		}
		s.ttls = append(s.ttls, uint16(r.fixed+4))
		next = r.end
	}
	return s, nil
}

func withoutOPT(rrs []dns.RR) []dns.RR {
	kept := make([]dns.RR, 0, len(rrs))
	for _, rr := range rrs {
		if rr.Header().Rrtype != dns.TypeOPT {
			kept = append(kept, rr)
		}
	}
	return kept
}

// lifetime says how long an answer may be kept: its smallest TTL; of a negative
// one that of its SOA record (RFC 2308), without which it is not kept at all.
func lifetime(m *dns.Msg, maxPositive, maxNegative time.Duration) time.Duration {
	if m.Truncated || m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return 0
	}
	least := uint32(maxPositive / time.Second)
	for _, rr := range m.Answer {
		least = min(least, rr.Header().Ttl)
	}
	if m.Rcode == dns.RcodeSuccess && len(m.Answer) > 0 {
		return time.Duration(least) * time.Second
	}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			least = min(least, soa.Hdr.Ttl, soa.Minttl, uint32(maxNegative/time.Second))
			return time.Duration(least) * time.Second
		}
	}
	return 0
}

// appendTo appends the stored answer as one to q, its TTLs less what has passed.
// It is false where that would be longer than limit.
func (s *stored) appendTo(buf []byte, q *query, now time.Time, limit, udp int) ([]byte, bool) {
	if len(s.msg)+q.optLen() > limit {
		return buf, false
	}
	start := len(buf)
	buf = append(buf, s.msg...)
	b := buf[start:]
	binary.BigEndian.PutUint16(b, q.id)
	flags := binary.BigEndian.Uint16(b[2:]) & (flagTC | flagAD | maskCode)
	if !q.do && q.flags&flagAD == 0 {
		flags &^= flagAD
	}
	flags |= flagQR | flagRA | q.flags&(flagRD|flagCD)
	binary.BigEndian.PutUint16(b[2:], flags)
	copy(b[headerSize:], q.question) // the same name, in the client's case
	passed := uint32(max(0, now.Sub(s.at)) / time.Second)
	for _, at := range s.ttls {
		ttl := binary.BigEndian.Uint32(b[at:])
		binary.BigEndian.PutUint32(b[at:], ttl-min(ttl, passed))
	}
	e := encoder{buf: buf, start: start, q: q, udp: udp}
	e.opt(NoError)
	return e.buf, true
}

const (
	cacheShards = 16
	// entryCost is roughly what an entry takes beside its message and name.
	entryCost = 320
)

// cache keeps answers from outside, the least used of which go first when it is
// full. It is safe for use by several goroutines.
type cache struct {
	seed   maphash.Seed
	shards [cacheShards]cacheShard
	hits   [2]atomic.Uint64 // positive, negative
	misses atomic.Uint64
}

type cacheShard struct {
	mu    sync.Mutex
	m     map[cacheKey]*list.Element
	lru   *list.List // of *cacheEntry, the last used in front
	bytes int
	limit int
}

type cacheEntry struct {
	key cacheKey
	*stored
}

func (e *cacheEntry) cost() int { return len(e.msg) + len(e.key.name) + 2*len(e.ttls) + entryCost }

// newCache makes a cache of at most about so many bytes.
func newCache(bytes int) *cache {
	c := &cache{seed: maphash.MakeSeed()}
	for i := range c.shards {
		c.shards[i] = cacheShard{m: map[cacheKey]*list.Element{}, lru: list.New(), limit: bytes / cacheShards}
	}
	return c
}

func (c *cache) shard(k cacheKey) *cacheShard {
	return &c.shards[maphash.String(c.seed, string(k.name))%cacheShards]
}

// get gives an answer that is still good, or nil.
func (c *cache) get(k cacheKey, now time.Time) *stored {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	el := s.m[k]
	if el == nil {
		return nil
	}
	e := el.Value.(*cacheEntry)
	if now.Sub(e.at) >= e.ttl {
		s.remove(el)
		return nil
	}
	s.lru.MoveToFront(el)
	return e.stored
}

// count counts what a client's question found.
func (c *cache) count(hit *stored) {
	if hit == nil {
		c.misses.Add(1)
		return
	}
	c.hits[negative(hit)].Add(1)
}

// negative gives 1 for an answer that there is nothing, 0 for any other.
func negative(s *stored) int {
	if s.code == NXDomain || binary.BigEndian.Uint16(s.msg[6:]) == 0 {
		return 1
	}
	return 0
}

func (c *cache) put(k cacheKey, v *stored) {
	if v.ttl <= 0 {
		return
	}
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.m[k]; old != nil {
		s.remove(old)
	}
	e := &cacheEntry{k, v}
	if e.cost() > s.limit {
		return
	}
	s.bytes += e.cost()
	s.m[k] = s.lru.PushFront(e)
	for s.bytes > s.limit {
		s.remove(s.lru.Back())
	}
}

func (s *cacheShard) remove(el *list.Element) {
	e := s.lru.Remove(el).(*cacheEntry)
	delete(s.m, e.key)
	s.bytes -= e.cost()
}

// size gives the number of entries and about their bytes.
func (c *cache) size() (entries, bytes int) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		entries, bytes = entries+len(s.m), bytes+s.bytes
		s.mu.Unlock()
	}
	return entries, bytes
}
