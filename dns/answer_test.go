package dns

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write the answers given into testdata")

// TestAnswer asks the questions of testdata/*.txtar, lines "> NAME TYPE [SEED]",
// of the objects there, and compares with the answers below them.
func TestAnswer(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.txtar")
	if len(files) == 0 {
		t.Fatal("no tables")
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { answerTable(t, file) })
	}
}

func answerTable(t *testing.T, file string) {
	ar, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	cfg := testConfig()
	var z *Zone
	for i, f := range ar.Files {
		switch f.Name {
		case "config":
			for _, w := range strings.Fields(string(f.Data)) {
				setting(t, &cfg, w)
			}
		case "objects":
			z = Compile(nil, buildObjects(t, string(f.Data)).Publish(), cfg)
		case "answers":
			got := askAll(t, z, string(f.Data))
			if got != string(f.Data) && !*update {
				t.Errorf("got:\n%s\nwant:\n%s", got, f.Data)
			}
			ar.Files[i].Data = []byte(got)
		}
	}
	if *update {
		if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func setting(t *testing.T, cfg *Config, text string) {
	k, v, _ := strings.Cut(text, "=")
	switch k {
	case "pods":
		cfg.Pods = PodMode(v)
	case "endpoints":
		cfg.AllEndpoints = v == "all"
	case "domain":
		cfg.Domain = mustName(v)
	default:
		t.Fatalf("unknown setting %q", text)
	}
}

func askAll(t *testing.T, z *Zone, text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") {
			out.WriteString(line)
			continue
		}
		rest, ok := strings.CutPrefix(line, "> ")
		if !ok {
			continue
		}
		var name, typ string
		var seed uint16
		_, _ = fmt.Sscan(rest, &name, &typ, &seed)
		out.WriteString(line)
		out.WriteString(ask(t, z, name, typ, seed))
	}
	return out.String()
}

// ask gives the answer as text, after it went over the wire and agreed with what
// another implementation reads there.
func ask(t *testing.T, z *Zone, name, typ string, seed uint16) string {
	var a Answer
	q := Question{Name: mustName(name), Type: Type(dns.StringToType[typ]), Seed: seed}
	if q.Type == 0 {
		t.Fatalf("unknown type %q", typ)
	}
	z.Answer(q, &a)
	if !a.Outside {
		checkWire(t, name, q, &a)
	}
	return a.String()
}

func checkWire(t *testing.T, name string, question Question, a *Answer) {
	t.Helper()
	req := new(dns.Msg)
	req.SetQuestion(dns.Fqdn(name), uint16(question.Type))
	b, err := req.Pack()
	if err != nil {
		t.Fatal(err)
	}
	q, code, ok := parseQuery(b)
	if !ok || code != NoError {
		t.Fatalf("%s: parse: %v %v", name, code, ok)
	}
	var m dns.Msg
	if err := m.Unpack(appendAnswer(nil, &q, a, 65535, 1232)); err != nil {
		t.Fatalf("%s: unpack: %v", name, err)
	}
	if Code(m.Rcode) != a.Code || m.Authoritative == (a.Code == Refused) || m.Question[0].Name != dns.Fqdn(name) {
		t.Errorf("%s: header %v, question %v", name, m.MsgHdr, m.Question)
	}
	for i, sec := range [3][]dns.RR{m.Answer, m.Ns, m.Extra} {
		want := [3][]Record{a.Answer, a.Authority, a.Extra}[i]
		if len(sec) != len(want) {
			t.Fatalf("%s: section %d: %d records, want %d", name, i, len(sec), len(want))
		}
		for j, rr := range sec {
			checkRecord(t, dns.Fqdn(name), rr, want[j])
		}
	}
}

func checkRecord(t *testing.T, asked string, got dns.RR, want Record) {
	t.Helper()
	text := strings.Replace(want.String(), "@", strings.ToLower(asked), 1)
	if want.Type == TypeHINFO {
		text += ` ""`
	}
	rr, err := dns.NewRR(text)
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	if !strings.EqualFold(got.String(), rr.String()) {
		t.Errorf("on the wire %q, want %q", got, rr)
	}
}
