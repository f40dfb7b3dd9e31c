package qperf

import "time"

// sparing is a clock for a loop of short calls, of which reading the time takes a good part. Between the ends of a test it reads it
// after every few calls only, so many that it is no more than a little behind; near the ends, after each.
type sparing struct {
	f    *flow
	t    time.Duration // as it was read
	skip int           // calls without a reading after the last one, and of these
	left int           // those to come
}

const (
	sparedCalls = 8
	sparedTime  = 500 * time.Microsecond // that it may be behind
)

func (c *sparing) now() time.Duration {
	if c.left > 0 {
		c.left--
		return c.t
	}
	t := c.f.now()
	each := (t - c.t) / time.Duration(c.skip+1)
	c.t, c.skip = t, 0
	if !c.f.nearEnd(t) {
		c.skip = min(sparedCalls, int(sparedTime/max(each, 1)))
	}
	c.left = c.skip
	return t
}

// nearEnd tells whether the clock of the test starts or ends within four times as long as a sparing clock may be behind.
func (f *flow) nearEnd(t time.Duration) bool {
	const near = 4 * sparedTime
	return t < f.from && f.from-t < near || f.until > 0 && f.until-t < near
}
