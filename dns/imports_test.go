package dns

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestImports: the files that decide what is answered touch nothing of the
// world.
func TestImports(t *testing.T) {
	allowed := []string{"cmp", "encoding/binary", "errors", "fmt", "net/netip", "slices", "strings",
		"github.com/podlane/podlane/cluster"}
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		impure := strings.HasPrefix(name, "server") || strings.HasPrefix(name, "forward")
		if impure || strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			if path, _ := strconv.Unquote(i.Path.Value); !slices.Contains(allowed, path) {
				t.Errorf("%s imports %s", name, path)
			}
		}
	}
}
