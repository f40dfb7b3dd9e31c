package explain

import (
	"fmt"
	"html"
	"io"
	"strings"
	"unicode/utf8"
)

// Measures of the SVG drawing, in its units.
const (
	itemHeight = 44
	itemGap    = 26
	boxGap     = 150
	margin     = 24
	charWidth  = 7.2
)

// place is where an item stands.
type place struct{ x, y, w, h float64 }

func (p place) left() (x, y float64)  { return p.x, p.y + p.h/2 }
func (p place) right() (x, y float64) { return p.x + p.w, p.y + p.h/2 }

// SVG writes the picture: nodes as boxes side by side, pods inside, the path as
// arrows. It asks for nothing from outside the file.
func (a *Answer) SVG(w io.Writer) error {
	p := a.picture()
	s := &svg{places: map[string]place{}, column: map[string]int{}}
	width, height := s.layout(p)
	fmt.Fprintf(&s.b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f" font-family="sans-serif" font-size="13">`+"\n", width, height, width, height)
	s.b.WriteString(svgStyle)
	fmt.Fprintf(&s.b, `<text x="%d" y="22" font-weight="bold">%s</text>`+"\n", margin, html.EscapeString(p.title))
	for _, box := range p.boxes {
		s.box(box)
	}
	for _, ar := range p.arrows {
		s.arrow(ar)
	}
	s.b.WriteString("</svg>\n")
	_, err := io.WriteString(w, s.b.String())
	return err
}

const svgStyle = `<style>.n{fill:#f4f6f8;stroke:#5b6770}.p{fill:#fff;stroke:#2f6f9f}.r{fill:#fff7e0;stroke:#b07d12}
.a{fill:none;stroke:#1d7a46;stroke-width:1.6}.l{fill:none;stroke:#b3261e;stroke-width:1.6;stroke-dasharray:5 4}.s{fill:#5b6770;font-size:11px}
.h{fill:#fff;fill-opacity:.85}</style>
<defs><marker id="m" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z" fill="#1d7a46"/></marker>
<marker id="x" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z" fill="#b3261e"/></marker></defs>
`

type svg struct {
	b      strings.Builder
	places map[string]place
	column map[string]int
	boxes  map[*box]place
}

func textWidth(s string) float64 { return charWidth*float64(utf8.RuneCountInString(s)) + 20 }

// layout gives each box a column and each item its place, rules in the middle.
func (s *svg) layout(p *picture) (width, height float64) {
	s.boxes = map[*box]place{}
	x := float64(margin)
	for i, box := range p.boxes {
		w := textWidth(box.sub + " " + box.name)
		for _, it := range box.items {
			w = max(w, textWidth(it.name), textWidth(it.sub))
		}
		y := 70.0
		for _, it := range box.items {
			s.places[it.id] = place{x + 14, y, w, itemHeight}
			s.column[it.id] = i
			y += itemHeight + itemGap
		}
		s.boxes[box] = place{x, 36, w + 28, y - itemGap + 14 - 36}
		height = max(height, y)
		x += w + 28 + boxGap
	}
	width = x - boxGap + margin + 60
	return max(width, textWidth(p.title)+2*margin), height + margin
}

func (s *svg) box(b *box) {
	p := s.boxes[b]
	fmt.Fprintf(&s.b, `<rect class="n" x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="6"/>`+"\n", p.x, p.y, p.w, p.h)
	fmt.Fprintf(&s.b, `<text class="s" x="%.1f" y="%.1f">%s</text>`+"\n", p.x+10, p.y+18, html.EscapeString(strings.TrimSpace(b.sub+" "+b.name)))
	for _, it := range b.items {
		at := s.places[it.id]
		class, round := "p", 3
		if it.rules {
			class, round = "r", 14
		}
		fmt.Fprintf(&s.b, `<rect class="%s" x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="%d"/>`+"\n", class, at.x, at.y, at.w, at.h, round)
		fmt.Fprintf(&s.b, `<text x="%.1f" y="%.1f">%s</text>`+"\n", at.x+10, at.y+18, html.EscapeString(it.name))
		fmt.Fprintf(&s.b, `<text class="s" x="%.1f" y="%.1f">%s</text>`+"\n", at.x+10, at.y+34, html.EscapeString(it.sub))
	}
}

func (s *svg) arrow(ar arrow) {
	from, to := s.places[ar.from], s.places[ar.to]
	class, mark := "a", "m"
	if ar.lost {
		class, mark = "l", "x"
	}
	var path string
	var lx, ly float64
	switch a, b := s.column[ar.from], s.column[ar.to]; {
	case a == b && ar.from == ar.to:
		return
	case a == b: // around the right side
		x1, y1 := from.right()
		x2, y2 := to.right()
		bend := 34 + 0.12*max(y1-y2, y2-y1)
		path = fmt.Sprintf("M%.1f %.1fC%.1f %.1f %.1f %.1f %.1f %.1f", x1, y1, x1+bend, y1, x2+bend, y2, x2+1, y2)
		lx, ly = x1+bend*0.8, (y1+y2)/2
	case a < b:
		x1, y1 := from.right()
		x2, y2 := to.left()
		path = fmt.Sprintf("M%.1f %.1fC%.1f %.1f %.1f %.1f %.1f %.1f", x1, y1, x1+60, y1, x2-60, y2, x2-1, y2)
		lx, ly = (x1+x2)/2, (y1+y2)/2
	default:
		x1, y1 := from.left()
		x2, y2 := to.right()
		path = fmt.Sprintf("M%.1f %.1fC%.1f %.1f %.1f %.1f %.1f %.1f", x1, y1, x1-60, y1, x2+60, y2, x2+1, y2)
		lx, ly = (x1+x2)/2, (y1+y2)/2
	}
	fmt.Fprintf(&s.b, `<path class="%s" d="%s" marker-end="url(#%s)"/>`+"\n", class, path, mark)
	if ar.label != "" {
		fmt.Fprintf(&s.b, `<rect class="h" x="%.1f" y="%.1f" width="%.1f" height="16"/><text class="s" x="%.1f" y="%.1f" text-anchor="middle">%s</text>`+"\n",
			lx-textWidth(ar.label)/2+6, ly-16, textWidth(ar.label)-12, lx, ly-4, html.EscapeString(ar.label))
	}
}
