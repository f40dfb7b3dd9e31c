package explain

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// Text writes an Answer for a terminal. Paths that differ in their endpoint alone
// are written once.
func (a *Answer) Text(w io.Writer) error {
	p := &printer{w: w, shown: map[string]bool{}}
	p.line("%s %s -> %s, %s", a.From.Kind, a.From.Name, a.To, a.Protocol)
	if a.Name != nil {
		p.resolution(a.Name)
	}
	for _, c := range a.Services {
		p.service(c)
	}
	for i, group := range groups(a.Paths) {
		p.path(i, a, group)
	}
	for _, n := range a.Notes {
		p.line("\nnote: %s", n)
	}
	p.line("\n%s", a.summary())
	return p.err
}

func (a *Answer) summary() string {
	text := "verdict: " + string(a.Verdict)
	if a.Reason != "" {
		return text + ": " + a.Reason
	}
	return text
}

type printer struct {
	w     io.Writer
	err   error
	shown map[string]bool // objects written, by node and ID
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

// table writes rows of aligned cells.
func (p *printer) table(rows [][]string) {
	t := tabwriter.NewWriter(p.w, 0, 8, 2, ' ', 0)
	for _, r := range rows {
		if _, err := fmt.Fprintln(t, strings.TrimRight("  "+strings.Join(r, "\t"), "\t ")); err != nil {
			p.err = err
		}
	}
	if err := t.Flush(); err != nil {
		p.err = err
	}
}

func (p *printer) resolution(r *Resolution) {
	p.line("\nNAME %s, which %s asks at %s (search %s; ndots:%d)", r.Name, "the pod", cmp.Or(r.Server, "nobody"), strings.Join(r.Search, " "), ndots)
	var rows [][]string
	for _, t := range r.Tries {
		what := t.Code
		for _, addr := range t.Addrs {
			what += " " + addr.String()
		}
		if t.Alias != "" {
			what += " alias of " + t.Alias
		}
		if len(t.Addrs) > 0 {
			what += fmt.Sprintf(" (TTL %d s)", t.TTL)
		}
		rows = append(rows, []string{t.Name, what})
	}
	p.table(rows)
	if c := r.AnsweredBy; c != nil {
		var who []string
		for _, e := range c.Endpoints {
			if e.Why == "" {
				who = append(who, fmt.Sprintf("%s on %s (%s)", cmp.Or(e.Pod, e.Addr.String()), cmp.Or(e.Node, "?"), percent(e)))
			}
		}
		p.line("  answered by one of the endpoints of %s: %s", c.Service, strings.Join(who, ", "))
	}
}

func percent(e Endpoint) string {
	if e.Probability == 1 {
		return "always"
	}
	return fmt.Sprintf("%s = %.2f %%", e.Fraction, 100*e.Probability)
}

func (p *printer) service(c *ServiceChoice) {
	how := "by the rules"
	if c.AtSocket {
		how = "at the pod's socket, so that no packet is translated, by the maps"
	}
	p.line("\nSERVICE %s at %s, %s of node %s", cmp.Or(c.Service, "none"), c.Frontend, how, c.Node)
	p.line("  %s; affinity: %s", c.Policy, c.Affinity)
	var rows [][]string
	for _, e := range c.Endpoints {
		chance := percent(e)
		if e.Why != "" {
			chance = "none: " + e.Why
		}
		rows = append(rows, []string{e.Addr.String(), cmp.Or(e.Pod, "-"), cmp.Or(e.Node, "-"), chance})
	}
	p.table(rows)
	if len(c.Endpoints) == 0 {
		p.line("  no endpoint")
	}
	for _, s := range c.Shadowed {
		p.line("  Service %s wants this address and port too, and does not get it", s)
	}
	p.objects(c.Objects)
}

// objects writes kernel objects, each of a node once.
func (p *printer) objects(list []Object) {
	for _, o := range list {
		if key := o.Node + " " + o.ID; !p.shown[key] {
			p.shown[key] = true
			p.line("      %s", o.Text)
		}
	}
}

// groups puts paths together whose hops are of the same shape: the same nodes
// and stages, and the same source.
func groups(paths []*Path) [][]*Path {
	var all [][]*Path
	at := map[string]int{}
	for _, path := range paths {
		shape := fmt.Sprint(path.End.Node, path.Source, path.Verdict, path.End.Kind)
		for _, h := range path.Forward {
			shape += fmt.Sprint(h.Node, h.Stage)
		}
		i, known := at[shape]
		if !known {
			i, at[shape], all = len(all), len(all), append(all, nil)
		}
		all[i] = append(all[i], path)
	}
	return all
}

func (p *printer) path(i int, a *Answer, group []*Path) {
	first := group[0]
	p.line("\nPATH %d to %s%s", i+1, destination(first), share(a, first))
	if len(group) > 1 {
		var others []string
		for _, o := range group[1:] {
			others = append(others, destination(o))
		}
		p.line("  in the same way to %s", strings.Join(others, ", "))
	}
	p.hops(skipService(first.Forward))
	if len(first.Back) > 0 {
		p.line("  and back")
		p.hops(first.Back)
	}
	source := "not known beforehand"
	if first.Source.IsValid() {
		source = first.Source.String()
	}
	p.line("  source seen there: %s (%s); longest packet: %s", source, first.SourceWhy, bytesText(first.MTU))
	if len(group) < len(a.Paths) || len(group) == 1 && len(a.Paths) > 1 {
		p.line("  %s%s", first.Verdict, colon(first.Reason))
	}
}

func colon(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

func bytesText(n int) string {
	if n == 0 {
		return "not known"
	}
	return fmt.Sprintf("%d bytes", n)
}

func destination(p *Path) string {
	if p.End.Kind == "outside" || p.End.Name == "" {
		return p.To.String()
	}
	text := fmt.Sprintf("%s, %s", p.To, p.End.Name)
	if p.End.Kind == "pod" && p.End.Node != "" {
		text += " on " + p.End.Node
	}
	return text
}

func share(a *Answer, p *Path) string {
	if len(a.Services) == 0 || p.Fraction == "" {
		return ""
	}
	return fmt.Sprintf(", %s of new connections each", p.Fraction)
}

// skipService leaves out what SERVICE has shown.
func skipService(hops []Hop) []Hop {
	return slices.DeleteFunc(slices.Clone(hops), func(h Hop) bool { return h.Stage == StageService })
}

func (p *printer) hops(hops []Hop) {
	width := 0
	for _, h := range hops {
		width = max(width, len(h.Node))
	}
	for _, h := range hops {
		p.line("  %-*s  %-8s  %s", width, h.Node, h.Stage, h.Text)
		p.objects(h.Objects)
	}
}
