// Package repeat keeps a log readable: what is said again and again is said once a
// minute, with how often. It changes nothing of what is said.
package repeat

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// Every is how often the same is said.
const Every = time.Minute

// most bounds what is remembered.
const most = 1000

// Handler passes records on, but for warnings and errors that are the same as one of
// the last minute.
type Handler struct {
	next   slog.Handler
	shared *shared
	prefix string // of attributes and groups that the logger has
}

type shared struct {
	mu   sync.Mutex
	seen map[string]*record
}

type record struct {
	said   time.Time
	hushed int
}

// New gives a Handler in front of another one.
func New(next slog.Handler) *Handler { return &Handler{next, &shared{seen: map[string]*record{}}, ""} }

// Enabled implements slog.Handler, as the methods after it do.
func (h *Handler) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

// WithAttrs gives a Handler with more attributes.
func (h *Handler) WithAttrs(as []slog.Attr) slog.Handler {
	return &Handler{h.next.WithAttrs(as), h.shared, h.prefix + text(as)}
}

// WithGroup gives a Handler with a group.
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{h.next.WithGroup(name), h.shared, h.prefix + "{" + name}
}

// Handle passes a record on, or counts it.
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelWarn {
		return h.next.Handle(ctx, r)
	}
	var attrs []slog.Attr
	r.Attrs(func(a slog.Attr) bool { attrs = append(attrs, a); return true })
	hushed, say := h.shared.count(h.prefix+r.Message+text(attrs), r.Time)
	if !say {
		return nil
	}
	if hushed > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("repeated", hushed))
	}
	return h.next.Handle(ctx, r)
}

// count says whether something is to be said now, and how often it was not since it
// was said last.
func (s *shared) count(what string, now time.Time) (hushed int, say bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	had := s.seen[what]
	if had != nil && now.Sub(had.said) < Every {
		had.hushed++
		return 0, false
	}
	if had == nil {
		s.forget(now)
		had = &record{}
		s.seen[what] = had
	}
	hushed, had.hushed, had.said = had.hushed, 0, now
	return hushed, true
}

// forget makes room: what was not said again for two minutes goes, and everything
// where that is not enough.
func (s *shared) forget(now time.Time) {
	if len(s.seen) < most {
		return
	}
	for what, r := range s.seen {
		if now.Sub(r.said) > 2*Every {
			delete(s.seen, what)
		}
	}
	if len(s.seen) >= most {
		clear(s.seen)
	}
}

func text(as []slog.Attr) string {
	var b strings.Builder
	for _, a := range as {
		b.WriteString("\x00" + a.String())
	}
	return b.String()
}
