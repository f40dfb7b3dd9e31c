package purity

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// pure are the packages that decide and do nothing else. The files of a package
// whose names begin with one of the words may touch the world.
var pure = map[string][]string{
	"cluster":          nil,
	"cluster/convert":  nil,
	"overlay":          nil,
	"egress":           nil,
	"hostport":         nil,
	"guard":            {"counts"},
	"overlay/fastpath": nil,
	"proxy":            nil,
	"proxy/ebpf":       nil,
	"proxy/nftables":   nil,
	"proxy/stale":      nil,
	"plan":             nil,
	"explain":          nil,
	"lab/control":      nil,
	"perf/stats":       nil,
	"dns":              {"server", "forward"},
}

// banned are the imports that a pure file must not have: those that reach the
// system, the clock or the API. net/netip is fine.
func banned(path string) bool {
	switch path {
	case "os", "net", "syscall", "time", "os/exec", "sync", "context", "log/slog", "math/rand", "math/rand/v2":
		return true
	}
	for _, p := range []string{"golang.org/x/sys", "github.com/vishvananda/", "github.com/mdlayher/", "k8s.io/client-go"} {
		if strings.HasPrefix(path, p) {
			return true
		}
	}
	return false
}

// Invariant 2 of ARCHITECTURE.md: the pure packages import nothing that touches
// the world, and start no goroutine.
func TestPurePackages(t *testing.T) {
	for dir, except := range pure {
		files, err := filepath.Glob(filepath.Join("..", "..", dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Errorf("%s: no files (%v); is the list stale?", dir, err)
		}
		for _, f := range files {
			name := filepath.Base(f)
			begins := func(word string) bool { return strings.HasPrefix(name, word) }
			if strings.HasSuffix(f, "_test.go") || slices.ContainsFunc(except, begins) {
				continue
			}
			checkFile(t, f)
		}
	}
}

func checkFile(t *testing.T, name string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, imp := range f.Imports {
		if path, _ := strconv.Unquote(imp.Path.Value); banned(path) {
			t.Errorf("%s imports %s: a pure package must not", name, path)
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		if _, ok := n.(*ast.GoStmt); ok {
			t.Errorf("%s starts a goroutine: a pure package must not", name)
		}
		return true
	})
}

// Every package says in its comment what it is: "Package x ..." or, for
// commands, "Command x ...".
func TestPackageComments(t *testing.T) {
	documented := map[string]bool{}
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && len(d.Name()) > 2) {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			return err
		}
		dir := filepath.Dir(path)
		documented[dir] = documented[dir] || f.Doc != nil
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s: no package comment", dir)
		}
	}
}
