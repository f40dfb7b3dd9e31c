package agent

import (
	"context"
	"log/slog"
	"time"
)

// watchPause is how often a watcher is opened at most, so that one that fails does not
// keep the loop busy.
const watchPause = time.Second

// watching keeps the kernel telling of changes. A watcher ends where more happened than its
// socket could hold, or where that fails. Another one is opened then; whatever has changed
// meanwhile is for whoever is told of its opening to read. All is of the loop's goroutine.
type watching struct {
	what    string // in the log
	log     *slog.Logger
	open    func(context.Context) (<-chan error, error)
	notices <-chan error     // nil where nobody listens
	again   <-chan time.Time // when reopen is to be called; nil where that is not needed
	opened  time.Time        // or tried to be, the last time
	logged  time.Time
}

func (w *watching) begin(ctx context.Context) (err error) {
	w.opened, w.again = time.Now(), nil
	w.notices, err = w.open(ctx)
	return err
}

// reopen opens a watcher in place of one that has ended.
func (w *watching) reopen(ctx context.Context) { w.heard(w.begin(ctx)) }

// heard is told of each notice; one that is an error is the watcher's last.
func (w *watching) heard(err error) {
	if err == nil {
		return
	}
	w.notices, w.again = nil, time.After(time.Until(w.opened.Add(watchPause)))
	if time.Since(w.logged) < repeatLog {
		return
	}
	w.logged = time.Now()
	w.log.Warn(w.what+" are not told for now", "again", watchPause, "err", err)
}
