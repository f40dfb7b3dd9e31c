package file

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/podlane/podlane/cluster"
)

// Read reads the files *.yaml, *.yml and *.json of a folder (not of the folders in
// it), or one file of any name, or standard input where path is "-".
//
// The problems are those of the text: documents that cannot be read (they are left
// out, all others are there), unknown fields, objects that are there twice (the
// later one counts). What is wrong with an object's values is in the Snapshot.
// The error says that path itself cannot be read.
func Read(path string) (*Objects, []cluster.Problem, error) {
	if path == "-" {
		data, err := io.ReadAll(os.Stdin)
		if err != nil {
			return nil, nil, fmt.Errorf("standard input: %w", err)
		}
		return collect(tree{"standard input": parse("standard input", data)})
	}
	d, err := dirOf(path)
	if err != nil {
		return nil, nil, err
	}
	names, err := d.names()
	if err != nil {
		return nil, nil, err
	}
	files := tree{}
	for _, name := range names {
		files[name] = d.parse(name)
		if d.only != "" && files[name].unreadable != nil {
			return nil, nil, files[name].unreadable
		}
	}
	return collect(files)
}

// Parse reads the text of one file. Its name is for messages and tells JSON from
// YAML. The problems are as Read gives them.
func Parse(name string, text []byte) (*Objects, []cluster.Problem) {
	objects, problems, _ := collect(tree{name: parse(name, text)})
	return objects, problems
}

func collect(files tree) (*Objects, []cluster.Problem, error) {
	objects := &Objects{Unknown: files.unknown()}
	merged, problems := files.merge()
	for _, e := range merged {
		objects.add(e.object)
	}
	return objects, problems, nil
}

// dir is a folder, or one file of it.
type dir struct {
	path string
	only string // the one file's name, or ""
}

func dirOf(path string) (dir, error) {
	info, err := os.Stat(path)
	if err != nil {
		return dir{}, err
	}
	if info.IsDir() {
		return dir{path: path}, nil
	}
	return dir{path: filepath.Dir(path), only: filepath.Base(path)}, nil
}

// wants says whether a file of the folder is read. Editors' temporary files
// begin with a dot or a '#', or have another ending.
func (d dir) wants(name string) bool {
	if d.only != "" {
		return name == d.only
	}
	if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "#") {
		return false
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// names lists the files to read, in order. A pipe or a device in the folder is
// not one of them, since it could block; the one file may be one.
func (d dir) names() ([]string, error) {
	if d.only != "" {
		_, err := os.Stat(filepath.Join(d.path, d.only))
		return []string{d.only}, err
	}
	list, err := os.ReadDir(d.path)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range list {
		if d.wants(e.Name()) && (e.Type().IsRegular() || e.Type()&fs.ModeSymlink != 0) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// parse reads one file. A file that cannot be opened has failed as a whole.
func (d dir) parse(name string) *parsed {
	data, err := os.ReadFile(filepath.Join(d.path, name))
	if err != nil {
		return &parsed{failed: true, unreadable: err, problems: []cluster.Problem{fileProblem(name, "", err.Error())}}
	}
	p := parse(name, data)
	p.sum = sha256.Sum256(data)
	return p
}

// Version gives a digest of the files of a folder, or of one file, as they are
// now. A Source's Snapshot has the same when it has read them.
func Version(path string) (string, error) {
	d, err := dirOf(path)
	if err != nil {
		return "", err
	}
	names, err := d.names()
	if err != nil {
		return "", err
	}
	sums := map[string][sha256.Size]byte{}
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(d.path, name))
		if err != nil {
			return "", err
		}
		sums[name] = sha256.Sum256(data)
	}
	return version(sums), nil
}

func version(sums map[string][sha256.Size]byte) string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		fmt.Fprintf(h, "%q %x\n", name, sums[name])
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// tree is what the files of a folder have, by name.
type tree map[string]*parsed

// merge gives the objects of all files in order. Of two of one name the later
// one stays, at its own place.
func (t tree) merge() (merged []entry, problems []cluster.Problem) {
	type place struct {
		file  string
		entry entry
	}
	winners := map[ref]place{}
	names := slices.Sorted(maps.Keys(t))
	for _, name := range names {
		problems = append(problems, t[name].problems...)
		for _, e := range t[name].entries {
			if first, twice := winners[e.ref]; twice {
				problems = append(problems, cluster.Problem{Kind: e.kind, Key: e.key, Err: fmt.Sprintf(
					"is in %s, %s, and again in %s, %s: the later one counts", first.file, first.entry.where, name, e.where)})
			}
			winners[e.ref] = place{name, e}
		}
	}
	for _, name := range names {
		for _, e := range t[name].entries {
			if winners[e.ref].entry.object == e.object {
				merged = append(merged, e)
			}
		}
	}
	return merged, problems
}

func (t tree) unknown() map[string]int {
	sum := map[string]int{}
	for _, p := range t {
		for kind, n := range p.unknown {
			sum[kind] += n
		}
	}
	return sum
}
