// Package tables reads kube-proxy's own packet-flow tables: what packets meet by
// its unit tests (runPacketFlowTests in pkg/proxy/nftables). It runs these tests, as
// they are in the module cache but for calls that take down what each table is
// about, and copies nothing of them.
package tables

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

const (
	module  = "k8s.io/kubernetes"
	folder  = "pkg/proxy/nftables"
	virtual = "upstream" // the folder of the package that is made
)

// Table is one call of runPacketFlowTests, with what the proxier knew then.
type Table struct {
	Test, Line        string
	IPv6              bool
	MasqueradeAll     bool
	LocalDetector     bool
	NodePortAddresses []string
	ServiceCIDRs      []string
	Services          []*corev1.Service
	Slices            []*discoveryv1.EndpointSlice
	Packets           []Packet
}

// Packet is a row.
type Packet struct {
	Name, Source, Protocol, Dest string
	Port                         int
	Output                       string // "", "DROP", "REJECT" or endpoints
	Masquerade                   bool
}

// Read runs the tests. It needs the go command and the module in the cache.
func Read(dir string) ([]Table, error) {
	source, err := moduleDir(dir)
	if err != nil {
		return nil, err
	}
	temp, err := os.MkdirTemp("", "tables")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temp)
	overlay, err := writeOverlay(dir, filepath.Join(source, folder), temp)
	if err != nil {
		return nil, err
	}
	record := filepath.Join(temp, "record")
	for _, name := range []string{"go.mod", "go.sum"} { // copies, since these tests need more than is ours
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(temp, name), text, 0o600)
		}
		if err != nil {
			return nil, err
		}
	}
	binary := filepath.Join(temp, "upstream.test")
	if _, err := goCommand(dir, "test", "-c", "-o", binary, "-vet=off", "-mod=mod", "-modfile="+filepath.Join(temp, "go.mod"), "-overlay="+overlay, "./"+virtual); err != nil {
		return nil, err
	}
	cmd := exec.Command(binary)
	cmd.Dir, cmd.Env = temp, append(os.Environ(), "RECORD_TABLES="+record)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("kube-proxy's own tests: %w: %s", err, out)
	}
	return decode(record)
}

func moduleDir(dir string) (string, error) {
	out, err := goCommand(dir, "list", "-m", "-f", "{{.Dir}}", module)
	return strings.TrimSpace(out), err
}

func goCommand(dir string, args ...string) (string, error) {
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s: %w: %s %s", args[0], err, errs.String(), out.String())
	}
	return out.String(), nil
}

func decode(record string) ([]Table, error) {
	f, err := os.Open(record)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var tables []Table
	for d := json.NewDecoder(f); d.More(); {
		var t Table
		if err := d.Decode(&t); err != nil {
			return nil, err
		}
		tables = append(tables, t)
	}
	return tables, nil
}

// calls are put at the beginning of functions.
var calls = map[string]map[string]string{
	"proxier.go": {
		"OnServiceUpdate":       "recordService(proxier, oldService, service)",
		"OnEndpointSliceAdd":    "recordSlice(proxier, endpointSlice, false)",
		"OnEndpointSliceUpdate": "recordSlice(proxier, endpointSlice, false)",
		"OnEndpointSliceDelete": "recordSlice(proxier, endpointSlice, true)",
	},
	"helpers_test.go": {"runPacketFlowTests": "recordTable(t, line, nft, testCases)"},
}

// writeOverlay makes a package of the module in dir that has upstream's files, some
// of them changed, and is nowhere on the disk: what is in the module cache cannot be
// replaced itself. It gives the name of the file for -overlay.
func writeOverlay(dir, source, temp string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	replace := map[string]string{}
	files, err := filepath.Glob(filepath.Join(source, "*.go"))
	if err != nil {
		return "", err
	}
	for _, f := range files {
		replace[filepath.Join(dir, virtual, filepath.Base(f))] = f
	}
	add := func(name string, text []byte) error {
		replace[filepath.Join(dir, virtual, name)] = filepath.Join(temp, name)
		return os.WriteFile(filepath.Join(temp, name), text, 0o600)
	}
	for name, of := range calls {
		text, err := insert(filepath.Join(source, name), of)
		if err != nil {
			return "", err
		}
		if err := add(name, text); err != nil {
			return "", err
		}
	}
	if err := errors.Join(add("zz_record.go", []byte(recorder)), add("zz_record_test.go", []byte(tableRecorder))); err != nil {
		return "", err
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(temp, "overlay.json")
	return overlay, os.WriteFile(overlay, text, 0o600)
}

// insert gives a file with calls at the beginning of some of its functions.
func insert(file string, of map[string]string) ([]byte, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	files := token.NewFileSet()
	parsed, err := parser.ParseFile(files, file, text, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	done := 0
	for _, d := range slices.Backward(parsed.Decls) {
		f, ok := d.(*ast.FuncDecl)
		if !ok || of[f.Name.Name] == "" {
			continue
		}
		at := files.Position(f.Body.Lbrace).Offset + 1
		text = slices.Concat(text[:at], []byte(" "+of[f.Name.Name]+"; "), text[at:])
		done++
	}
	if done != len(of) {
		return nil, fmt.Errorf("%s: %d of the functions are there, want %d: has the package changed?", file, done, len(of))
	}
	return text, nil
}
