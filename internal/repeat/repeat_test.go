package repeat

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestHandler(t *testing.T) {
	var out bytes.Buffer
	h := New(slog.NewTextHandler(&out, nil)).WithAttrs([]slog.Attr{slog.String("node", "n1")})
	start := time.Unix(1e9, 0)
	say := func(after time.Duration, level slog.Level, text string, args ...any) {
		r := slog.NewRecord(start.Add(after), level, text, 0)
		r.Add(args...)
		if err := h.Handle(context.Background(), r); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 61 { // a minute and a second of one trouble
		say(time.Duration(i)*time.Second, slog.LevelWarn, "apply", "err", "no such device")
		say(time.Duration(i)*time.Second, slog.LevelInfo, "pod", "n", i)
	}
	say(0, slog.LevelWarn, "apply", "err", "another")
	if n := strings.Count(out.String(), "no such device"); n != 2 || !strings.Contains(out.String(), "repeated=59") || !strings.Contains(out.String(), "err=another") ||
		strings.Count(out.String(), "msg=pod") != 61 || !strings.Contains(out.String(), "node=n1") {
		t.Errorf("%d times:\n%s", n, out.String())
	}
	for i := range 5 * most { // what is different each time fills no memory
		say(time.Hour, slog.LevelError, "x", "err", fmt.Sprint(i))
	}
	if n := len(h.(*Handler).shared.seen); n > most {
		t.Errorf("%d remembered", n)
	}
}
