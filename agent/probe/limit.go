package probe

import (
	"net/netip"
	"time"
)

// The limits of answers: an agent that has lost a way asks some ten times a second
// for a moment, and each node asks a few targets.
const (
	perSource = 50 // a second, of one address
	overall   = 2000
)

// limiter counts the answers of each second.
type limiter struct {
	second int64
	count  map[netip.Addr]int
	all    int
}

func newLimiter() limiter { return limiter{count: map[netip.Addr]int{}} }

// allow says whether one more is within the limits. Its memory is bounded by the
// overall limit.
func (l *limiter) allow(from netip.Addr, now time.Time) bool {
	if s := now.Unix(); s != l.second {
		l.second, l.all = s, 0
		clear(l.count)
	}
	if l.all >= overall || l.count[from] >= perSource {
		return false
	}
	l.all++
	l.count[from]++
	return true
}
