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
	s.age(b, now)
	e := encoder{buf: buf, start: start, q: q, udp: udp}
	e.opt(NoError)
	return e.buf, true
}

// staleTTL is the TTL of an answer that is past its end (RFC 8767, section 4).
const staleTTL = 30

// age brings the TTLs of b, a copy of the message, to a time.
func (s *stored) age(b []byte, now time.Time) {
	since := max(0, now.Sub(s.at))
	passed := uint32(since / time.Second)
	for _, at := range s.ttls {
		ttl := binary.BigEndian.Uint32(b[at:])
		ttl -= min(ttl, passed)
		if s.ttl > 0 && since >= s.ttl {
			ttl = staleTTL
		}
		binary.BigEndian.PutUint32(b[at:], ttl)
	}
}

const (
	cacheShards = 16
	// entryCost is roughly what an entry takes beside its message and name.
	entryCost = 360
)

// cache keeps answers from outside, the least used of which go first when it is
// full. It is safe for use by several goroutines.
type cache struct {
	seed   maphash.Seed
	shards [cacheShards]cacheShard
	hits   [2]atomic.Uint64 // positive, negative
	misses atomic.Uint64
	// maxStale is how long an answer is kept after its end.
	maxStale time.Duration
	evicted  atomic.Uint64
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
	asked    int       // how often it was given
	renewing bool      // it was said once that it is worth asking again
	notUntil time.Time // given though stale until then
}

func (e *cacheEntry) cost() int { return len(e.msg) + len(e.key.name) + 2*len(e.ttls) + entryCost }

// newCache makes a cache of at most about so many bytes.
func newCache(bytes int, maxStale time.Duration) *cache {
	c := &cache{seed: maphash.MakeSeed(), maxStale: max(0, maxStale)}
	for i := range c.shards {
		c.shards[i] = cacheShard{m: map[cacheKey]*list.Element{}, lru: list.New(), limit: bytes / cacheShards}
	}
	return c
}

func (c *cache) shard(k cacheKey) *cacheShard {
	return &c.shards[maphash.String(c.seed, string(k.name))%cacheShards]
}

const (
	// An answer is worth asking for again before its end when it was given so often
	// and less than a tenth of its time is left.
	prefetchAsked = 3
	prefetchPart  = 10
	// postponed is how long a stale answer is given without asking again.
	postponed = 5 * time.Second
)

// get gives an answer that is still good, or nil; and, once for each answer,
// whether it is worth asking for again.
func (c *cache) get(k cacheKey, now time.Time) (s *stored, renew bool) {
	sh := c.shard(k)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	el := sh.m[k]
	if el == nil {
		return nil, false
	}
	e := el.Value.(*cacheEntry)
	left := e.ttl - now.Sub(e.at)
	switch {
	case left <= -c.maxStale:
		sh.remove(el)
		return nil, false
	case left <= 0 && !now.Before(e.notUntil):
		return nil, false
	}
	sh.lru.MoveToFront(el)
	e.asked++
	if left > 0 && left < e.ttl/prefetchPart && e.asked >= prefetchAsked && !e.renewing {
		e.renewing, renew = true, true
	}
	return e.stored, renew
}

// stale gives an answer that is past its end but may still be given, or nil.
func (c *cache) stale(k cacheKey, now time.Time) *stored {
	sh := c.shard(k)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	el := sh.m[k]
	if el == nil {
		return nil
	}
	e := el.Value.(*cacheEntry)
	if left := e.ttl - now.Sub(e.at); left > 0 || left <= -c.maxStale {
		return nil
	}
	return e.stored
}

// postpone makes get give a stale answer for a while.
func (c *cache) postpone(k cacheKey, now time.Time) {
	sh := c.shard(k)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if el := sh.m[k]; el != nil {
		el.Value.(*cacheEntry).notUntil = now.Add(postponed)
	}
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
	e := &cacheEntry{key: k, stored: v}
	if e.cost() > s.limit {
		return
	}
	s.bytes += e.cost()
	s.m[k] = s.lru.PushFront(e)
	for s.bytes > s.limit {
		c.evicted.Add(1)
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
