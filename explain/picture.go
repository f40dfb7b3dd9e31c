package explain

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
)

// picture is what the drawings have in common: nodes as boxes, what is inside
// them, and arrows for the paths.
type picture struct {
	title  string
	boxes  []*box
	arrows []arrow
}

// box is a node, or with no name the outside.
type box struct {
	name, sub string
	items     []*item
}

// item is a pod, or the service rules of a node.
type item struct {
	id, name, sub string
	rules         bool
}

type arrow struct {
	from, to string // ids of items
	label    string
	lost     bool
}

// picture makes the drawing of an Answer. Paths to more than 8 endpoints are
// drawn for the first 8.
func (a *Answer) picture() *picture {
	d := &drawer{picture: &picture{title: fmt.Sprintf("%s → %s", a.From.Name, a.To)}, ids: map[string]string{}}
	from := d.item(a.From.Node, a.From.Kind, a.From.Name, addrText(a.From))
	if a.From.Kind == "outside" {
		from = d.item("", "outside", a.From.Name, addrText(a.From))
	}
	for i, p := range a.Paths {
		if i == 8 {
			break
		}
		d.path(a, p, from)
	}
	slices.SortStableFunc(d.boxes, func(x, y *box) int { return cmp.Compare(x.name, y.name) })
	return d.picture
}

func addrText(e End) string {
	if !e.Addr.IsValid() {
		return ""
	}
	return e.Addr.String()
}

type drawer struct {
	*picture
	ids map[string]string // by node, kind and name
}

func (d *drawer) box(node string) *box {
	name, sub := node, "node"
	if node == "" {
		name, sub = "outside", ""
	}
	for _, b := range d.boxes {
		if b.name == name {
			return b
		}
	}
	b := &box{name: name, sub: sub}
	d.boxes = append(d.boxes, b)
	return b
}

func (d *drawer) item(node, kind, name, sub string) string {
	key := node + "|" + kind + "|" + name
	if id, known := d.ids[key]; known {
		return id
	}
	id := fmt.Sprintf("i%d", len(d.ids)+1)
	d.ids[key] = id
	b := d.box(node)
	b.items = append(b.items, &item{id: id, name: name, sub: sub, rules: kind == "rules"})
	return id
}

func (d *drawer) arrow(from, to, label string, lost bool) {
	for _, a := range d.arrows {
		if a.from == from && a.to == to && a.label == label {
			return
		}
	}
	d.arrows = append(d.arrows, arrow{from, to, label, lost})
}

func (d *drawer) path(a *Answer, p *Path, at string) {
	way, share := "", ""
	for _, h := range p.Forward {
		switch h.Stage {
		case StageService:
			rules := d.item(h.Node, "rules", "service rules", a.frontend(h.Node))
			d.arrow(at, rules, way, false)
			at, way, share = rules, "", p.Fraction
		case StageTunnel:
			way = "VXLAN"
		case StageUnderlay:
			way = cmp.Or(way, "route")
		}
	}
	label := strings.TrimSpace(strings.Join(slices.DeleteFunc([]string{share, way}, func(s string) bool { return s == "" || s == "1" }), ", "))
	switch p.Verdict {
	case Delivered, Unanswered, Leaves, Unknown:
		node := p.End.Node
		to := d.item(node, p.End.Kind, p.End.Name, p.To.String())
		d.arrow(at, to, label, p.Verdict == Unanswered)
	default:
		d.arrow(at, d.item(p.End.Node, "end", string(p.Verdict), ""), label, true)
	}
}

func (a *Answer) frontend(node string) string {
	for _, c := range a.Services {
		if c.Node == node {
			return c.Frontend.String()
		}
	}
	return ""
}

// DOT writes the picture for graphviz.
func (a *Answer) DOT(w io.Writer) error {
	p := a.picture()
	var b strings.Builder
	fmt.Fprintf(&b, "digraph podlane {\n  rankdir=LR;\n  label=%q;\n  node [shape=box, fontname=\"sans-serif\"];\n", p.title)
	for i, box := range p.boxes {
		fmt.Fprintf(&b, "  subgraph cluster_%d {\n    label=%q;\n", i, strings.TrimSpace(box.sub+" "+box.name))
		for _, it := range box.items {
			style := ""
			if it.rules {
				style = ", style=rounded"
			}
			fmt.Fprintf(&b, "    %s [label=%q%s];\n", it.id, lines(it), style)
		}
		b.WriteString("  }\n")
	}
	for _, ar := range p.arrows {
		style := ""
		if ar.lost {
			style = ", style=dashed"
		}
		fmt.Fprintf(&b, "  %s -> %s [label=%q%s];\n", ar.from, ar.to, ar.label, style)
	}
	b.WriteString("}\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func lines(it *item) string {
	if it.sub == "" {
		return it.name
	}
	return it.name + "\n" + it.sub
}

// Mermaid writes the picture as a flowchart.
func (a *Answer) Mermaid(w io.Writer) error {
	p := a.picture()
	var b strings.Builder
	b.WriteString("flowchart LR\n")
	for i, box := range p.boxes {
		fmt.Fprintf(&b, "  subgraph b%d[\"%s\"]\n", i, strings.TrimSpace(box.sub+" "+box.name))
		for _, it := range box.items {
			open, end := "[", "]"
			if it.rules {
				open, end = "(", ")"
			}
			fmt.Fprintf(&b, "    %s%s\"%s\"%s\n", it.id, open, strings.ReplaceAll(lines(it), "\n", "<br/>"), end)
		}
		b.WriteString("  end\n")
	}
	for _, ar := range p.arrows {
		line := "-->"
		if ar.lost {
			line = "-.->"
		}
		if ar.label != "" {
			line += "|\"" + ar.label + "\"|"
		}
		fmt.Fprintf(&b, "  %s %s %s\n", ar.from, line, ar.to)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
