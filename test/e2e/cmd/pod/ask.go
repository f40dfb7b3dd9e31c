package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// asked is one question: when it was asked, and how it went.
type asked struct {
	at             time.Time
	atOnce, atLast bool // answered by the first try, by any
}

// ask asks one question again and again, and never waits for an answer before it
// asks again.
func ask(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errors.New(usage)
	}
	seconds, err := strconv.ParseFloat(args[2], 64)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds*float64(time.Second)))
	defer cancel()
	query := question(args[1])
	var all []*asked
	var wg sync.WaitGroup
	for tick := time.NewTicker(20 * time.Millisecond); ctx.Err() == nil; <-tick.C {
		a := &asked{at: time.Now()}
		all = append(all, a)
		wg.Go(func() {
			a.atOnce = answered(args[0], query)
			a.atLast = a.atOnce || answered(args[0], query)
		})
	}
	wg.Wait()
	atOnce, never, last, gap := 0, 0, all[0].at, time.Duration(0)
	for _, a := range all {
		if !a.atLast {
			never++
		}
		if a.atOnce {
			atOnce++
			gap, last = max(gap, a.at.Sub(last)), a.at
		}
	}
	gap = max(gap, all[len(all)-1].at.Sub(last))
	fmt.Println(len(all), atOnce, never, gap.Milliseconds())
	return nil
}

// question is for the addresses of a name (RFC 1035), without an ID.
func question(name string) []byte {
	b := []byte{0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for label := range strings.SplitSeq(strings.Trim(name, "."), ".") {
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0, 0, 1, 0, 1)
}

// answered says whether an answer without an error came within a second.
func answered(addr string, query []byte) bool {
	c, err := net.Dial("udp", addr)
	if err != nil {
		return false
	}
	defer c.Close()
	end := time.Now().Add(time.Second)
	_ = c.SetDeadline(end)
	q := bytes.Clone(query)
	q[0], q[1] = byte(rand.Uint32()), byte(rand.Uint32())
	if _, err := c.Write(q); err != nil {
		return false
	}
	b := make([]byte, 1500)
	n, err := c.Read(b)
	if err != nil {
		time.Sleep(time.Until(end)) // refused: a client's next try is not sooner either
		return false
	}
	return n >= 12 && bytes.Equal(b[:2], q[:2]) && b[3]&15 == 0 && b[7] > 0
}
