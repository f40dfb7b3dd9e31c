// Package corefile reads CoreDNS's configuration and says what of it podlane dns
// can do, and of each other line that it cannot. It runs no plugin and checks no
// name.
package corefile

import (
	"fmt"
	"strings"
)

// Block is a server block: zones with ports, and plugins.
type Block struct {
	Line    int
	Keys    []string
	Plugins []Directive
}

// Directive is a line of words, with the lines in braces behind it.
type Directive struct {
	Line int
	Name string
	Args []string
	Body []Directive
}

func (d Directive) String() string {
	return strings.Join(append([]string{d.Name}, d.Args...), " ")
}

type token struct {
	line  int
	text  string
	first bool // of its line
}

// Parse reads a Corefile. Environment variables are not replaced, and snippets
// and imports are directives like others.
func Parse(text string) ([]Block, error) {
	tokens, err := scan(text)
	if err != nil {
		return nil, err
	}
	p := parser{tokens: tokens}
	var out []Block
	for p.more() {
		b, err := p.block()
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// scan splits a text into words: quoted ones may have spaces, "#" begins a
// comment where a word would begin.
func scan(text string) ([]token, error) {
	var out []token
	n := 0
	for line := range strings.Lines(text) {
		n++
		first := true
		for rest := strings.TrimSpace(line); rest != "" && rest[0] != '#'; rest = strings.TrimSpace(rest) {
			var word string
			if rest[0] == '"' {
				end := strings.IndexByte(rest[1:], '"')
				if end < 0 {
					return nil, fmt.Errorf("line %d: a quote is not closed", n)
				}
				word, rest = rest[1:1+end], rest[end+2:]
			} else if end := strings.IndexAny(rest, " \t"); end >= 0 {
				word, rest = rest[:end], rest[end:]
			} else {
				word, rest = rest, ""
			}
			out = append(out, token{n, word, first})
			first = false
		}
	}
	return out, nil
}

type parser struct {
	tokens []token
	at     int
}

func (p *parser) more() bool { return p.at < len(p.tokens) }

// block reads keys, which commas may separate and which may stand on several
// lines, and what is in braces.
func (p *parser) block() (Block, error) {
	b := Block{Line: p.tokens[p.at].line}
	for ; p.more() && p.tokens[p.at].text != "{"; p.at++ {
		for _, k := range strings.Split(p.tokens[p.at].text, ",") {
			if k != "" {
				b.Keys = append(b.Keys, k)
			}
		}
	}
	if !p.more() {
		return b, fmt.Errorf("line %d: no { behind %q", b.Line, strings.Join(b.Keys, " "))
	}
	var err error
	b.Plugins, err = p.body()
	return b, err
}

// body reads the lines between braces.
func (p *parser) body() ([]Directive, error) {
	open := p.tokens[p.at].line
	p.at++
	var out []Directive
	for p.more() {
		t := p.tokens[p.at]
		switch {
		case t.text == "}":
			p.at++
			return out, nil
		case t.text == "{" && len(out) > 0:
			body, err := p.body()
			if err != nil {
				return nil, err
			}
			out[len(out)-1].Body = body
			continue
		case t.first || len(out) == 0:
			out = append(out, Directive{Line: t.line, Name: t.text})
		default:
			out[len(out)-1].Args = append(out[len(out)-1].Args, t.text)
		}
		p.at++
	}
	return nil, fmt.Errorf("line %d: { is not closed", open)
}
