package dns

import (
	"context"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// stored answers with what came from an upstream.
func (s *Server) stored(w *worker, st *stored, now time.Time) {
	limit := w.limit(s.cfg.UDPSize)
	out, fits := st.appendTo(w.out[:0], &w.q, now, limit, s.cfg.UDPSize)
	if !fits {
		m := new(dns.Msg)
		whole, _ := st.appendTo(nil, &w.q, now, 1<<17, s.cfg.UDPSize)
		if m.Unpack(whole) != nil {
			s.code(w, ServFail)
			return
		}
		out = s.packed(w, m, limit)
	}
	w.out = out
}

// packed gives m cut to a limit.
func (s *Server) packed(w *worker, m *dns.Msg, limit int) []byte {
	m.Truncate(limit)
	b, err := m.Pack()
	if err != nil {
		s.code(w, ServFail)
		return w.out
	}
	return append(w.out[:0], b...)
}

// renew asks for an answer again, unless too many questions wait already.
func (s *Server) renew(k cacheKey) {
	k.name = Name(strings.Clone(string(k.name)))
	select {
	case s.pending <- struct{}{}:
		s.waiting.Go(func() {
			defer func() { <-s.pending }()
			s.cfg.Forwarder.refresh(k)
		})
	default:
	}
}

// rejected counts a question for which there is no room to wait.
func (s *Server) rejected() {
	if f := s.cfg.Forwarder; f != nil {
		f.counts.rejected.Add(1)
	}
}

// complete answers a request that respond left waiting.
func (s *Server) complete(ctx context.Context, w *worker) {
	q := w.q
	if w.answer.Chase != "" {
		s.chase(ctx, w)
		return
	}
	st, err := s.cfg.Forwarder.resolve(ctx, &q)
	if err != nil {
		s.cfg.Log.Debug("question not answered", "err", err)
		s.code(w, ServFail)
		return
	}
	s.stored(w, st, time.Now())
}

// chase puts what an upstream has for the end of a CNAME behind it.
func (s *Server) chase(ctx context.Context, w *worker) {
	q := w.q
	q.Name = w.answer.Chase
	q.question = append([]byte(q.Name), w.q.question[len(w.q.question)-4:]...)
	st, err := s.cfg.Forwarder.resolve(ctx, &q)
	if err != nil {
		s.cfg.Log.Debug("external name not found", "err", err)
		s.code(w, ServFail)
		return
	}
	theirs, _ := st.appendTo(nil, &q, time.Now(), 1<<17, s.cfg.UDPSize)
	ours := appendAnswer(nil, &w.q, &w.answer, 65535, s.cfg.UDPSize)
	var m, more dns.Msg
	if m.Unpack(ours) != nil || more.Unpack(theirs) != nil {
		s.code(w, ServFail)
		return
	}
	m.Answer = append(m.Answer, more.Answer...)
	m.Ns, m.Rcode, m.Truncated = more.Ns, more.Rcode, more.Truncated
	w.out = s.packed(w, &m, w.limit(s.cfg.UDPSize))
}
