package file

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// document is one document of a file.
type document struct {
	number int // from 1; documents of blanks and comments do not count
	line   int // of the file, from 1, where text begins
	text   []byte
}

// where says where the document is, for messages.
func (d document) where() string { return fmt.Sprintf("document %d (line %d)", d.number, d.line) }

// split cuts a file into its documents. The error is that of the text after the
// last of them.
func split(name string, data []byte) ([]document, error) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if filepath.Ext(name) == ".json" {
		return splitJSON(data)
	}
	return splitYAML(data), nil
}

// splitYAML cuts at the lines that begin with "---" or "..." (YAML 1.2, section
// 9.1). No content may look so.
func splitYAML(data []byte) []document {
	var docs []document
	line, start, at := 1, 1, 0
	end := func(to int) {
		if text := data[at:to]; !blank(text) {
			docs = append(docs, document{len(docs) + 1, start, text})
		}
	}
	for i := 0; i < len(data); line++ {
		next := len(data)
		if n := bytes.IndexByte(data[i:], '\n'); n >= 0 {
			next = i + n + 1
		}
		if marker(data[i:next]) {
			end(i)
			at, start = i+3, line
		}
		i = next
	}
	end(len(data))
	for i := range docs {
		docs[i].skipBlanks()
	}
	return docs
}

// marker says whether a line begins or ends a document.
func marker(line []byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte("---"))
	if !ok {
		rest, ok = bytes.CutPrefix(line, []byte("..."))
	}
	return ok && (len(rest) == 0 || strings.IndexByte(" \t\r\n", rest[0]) >= 0)
}

// blank says whether a document has nothing but blanks, comments and
// directives.
func blank(text []byte) bool {
	for l := range bytes.Lines(text) {
		l = bytes.TrimSpace(l)
		if len(l) > 0 && l[0] != '#' && l[0] != '%' {
			return false
		}
	}
	return true
}

// skipBlanks moves the beginning to the first line that has something.
func (d *document) skipBlanks() {
	for {
		n := bytes.IndexByte(d.text, '\n')
		if n < 0 || !blank(d.text[:n]) {
			return
		}
		d.text = d.text[n+1:]
		d.line++
	}
}

// splitJSON cuts a stream of JSON values. JSON files do not go through the YAML
// parser, which refuses tabs.
func splitJSON(data []byte) ([]document, error) {
	var docs []document
	dec := json.NewDecoder(bytes.NewReader(data))
	for {
		var raw json.RawMessage
		before := int(dec.InputOffset())
		err := dec.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return docs, jsonError(data, before, err)
		}
		begin := int(dec.InputOffset()) - len(raw)
		docs = append(docs, document{len(docs) + 1, lineAt(data, begin), raw})
	}
}

func jsonError(data []byte, before int, err error) error {
	at := before
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		at = int(syntax.Offset)
	} else if errors.Is(err, io.ErrUnexpectedEOF) {
		at = len(data)
	}
	return fmt.Errorf("line %d: %w", lineAt(data, at), err)
}

func lineAt(data []byte, offset int) int {
	return 1 + bytes.Count(data[:min(offset, len(data))], []byte("\n"))
}

// toJSON gives the document as JSON. Errors name lines of the file.
func (d document) toJSON() ([]byte, error) {
	if text := bytes.TrimSpace(d.text); len(text) > 0 && text[0] == '{' && json.Valid(text) {
		return text, nil
	}
	out, err := yaml.YAMLToJSONStrict(d.text) // refuses a key that is there twice
	if err != nil {
		return nil, d.inFile(err)
	}
	return out, nil
}

var yamlLine = regexp.MustCompile(`\bline (\d+):`)

// inFile rewrites the lines that an error of the YAML parser counts from the
// document's beginning.
func (d document) inFile(err error) error {
	text := yamlLine.ReplaceAllStringFunc(err.Error(), func(s string) string {
		n, convErr := strconv.Atoi(yamlLine.FindStringSubmatch(s)[1])
		if convErr != nil {
			return s
		}
		return fmt.Sprintf("line %d:", n+d.line-1)
	})
	text = strings.TrimPrefix(strings.ReplaceAll(text, "\n ", ""), "error converting YAML to JSON: ")
	text = strings.TrimPrefix(strings.TrimPrefix(text, "yaml: "), "unmarshal errors: ")
	if strings.HasPrefix(err.Error(), "yaml: line ") {
		text = "near " + text // the parser's own errors are a line early at times
	}
	return errors.New("not YAML: " + text)
}

// into decodes JSON as the API server does: case counts, and a field that the
// type does not have is not an error but is in strict.
func into(data []byte, v any) (strict []error, err error) {
	strict, err = kjson.UnmarshalStrict(data, v)
	if err != nil {
		text := strings.TrimPrefix(err.Error(), "json: ")
		if strings.Contains(text, "into Go ") && strings.Contains(text, "type string") {
			text += " (a text that YAML takes for something else needs quotes)"
		}
		err = errors.New(text)
	}
	return strict, err
}
