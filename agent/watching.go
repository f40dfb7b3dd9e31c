package agent

import (
	"context"
	"log/slog"
	"time"
)

// watchPause is how often a watcher is opened at most, so that one that fails does not
// keep the loop busy. One that cannot be opened is tried ever less often, down to linksEvery.
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
	pause   time.Duration    // from then to the next try
	logged  time.Time
}

func (w *watching) begin(ctx context.Context) (err error) {
	w.opened, w.again = time.Now(), nil
	if w.notices, err = w.open(ctx); err != nil {
		w.pause = min(max(2*w.pause, watchPause), linksEvery)
		return err
	}
	w.pause = watchPause
	return nil
}

// reopen opens a watcher in place of one that has ended, and says whether it did.
func (w *watching) reopen(ctx context.Context) bool {
	err := w.begin(ctx)
	w.heard(err)
	return err == nil
}

// heard is told of each notice; one that is an error is the watcher's last.
func (w *watching) heard(err error) {
	if err == nil {
		return
	}
	w.notices, w.again = nil, time.After(time.Until(w.opened.Add(w.pause)))
	if time.Since(w.logged) < repeatLog {
		return
	}
	w.logged = time.Now()
	w.log.Warn(w.what+" are not told for now", "again", w.pause, "err", err)
}
