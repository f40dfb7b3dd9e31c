// Command regen runs the commands of a document's console blocks in a lab of its
// own and writes their output in place of what stood there, so that a document
// with real output cannot go stale. It changes nothing else of the text.
//
// A block begins with "```console"; its lines that begin with "$ " are commands,
// run by sh with the podlane given; "$ COMMAND   # lines A-B" keeps only these lines
// of the output.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

func main() {
	podlane := flag.String("podlane", "bin/podlane", "the podlane to run")
	flag.Parse()
	if err := run(*podlane, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "regen:", err)
		os.Exit(1)
	}
}

func run(podlane string, files []string) error {
	r, err := newRunner(podlane)
	if err != nil {
		return err
	}
	defer r.close()
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		out, err := r.rewrite(string(text))
		if err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
		if err := os.WriteFile(f, []byte(out), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// runner has a folder of its own for labs, so that one of the user's is not
// touched, and remembers the output of each command: two languages of a document
// have the same commands in the same order, and show the same.
type runner struct {
	dir  string
	env  []string
	done map[string]string // by number and command
	n    int               // commands of this document so far
}

func newRunner(podlane string) (*runner, error) {
	path, err := filepath.Abs(podlane)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "podlane-docs-")
	if err != nil {
		return nil, err
	}
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return nil, err
	}
	if err := os.Symlink(path, filepath.Join(bin, "podlane")); err != nil {
		return nil, err
	}
	env := append(os.Environ(), "XDG_RUNTIME_DIR="+dir, "PATH="+bin+":"+os.Getenv("PATH"))
	return &runner{dir: dir, env: env, done: map[string]string{}}, nil
}

func (r *runner) close() {
	cmd := exec.Command("podlane", "lab", "down", "--all")
	cmd.Path, cmd.Env = filepath.Join(r.dir, "bin", "podlane"), r.env
	_ = cmd.Run()
	_ = os.RemoveAll(r.dir)
}

// rewrite gives the document with new output.
func (r *runner) rewrite(text string) (string, error) {
	var out strings.Builder
	in := false
	r.n = 0
	for line := range strings.Lines(text) {
		trimmed := strings.TrimRight(line, "\n")
		switch {
		case !in && trimmed == "```console":
			in = true
			out.WriteString(line)
		case in && trimmed == "```":
			in = false
			out.WriteString(line)
		case in && strings.HasPrefix(trimmed, "$ "):
			out.WriteString(line)
			result, err := r.command(strings.TrimPrefix(trimmed, "$ "))
			if err != nil {
				return "", err
			}
			out.WriteString(result)
		case !in:
			out.WriteString(line)
		}
	}
	return out.String(), nil
}

var kept = regexp.MustCompile(`\s+# lines (\d+)-(\d+)$`)

// command runs one and gives its output, or the lines of it that are to be kept.
func (r *runner) command(text string) (string, error) {
	first, last := 1, 1<<30
	if m := kept.FindStringSubmatch(text); m != nil {
		first, _ = strconv.Atoi(m[1])
		last, _ = strconv.Atoi(m[2])
		text = strings.TrimSuffix(text, m[0])
	}
	r.n++
	key := fmt.Sprint(r.n, " ", text)
	all, known := r.done[key]
	if !known {
		var out bytes.Buffer
		cmd := exec.Command("sh", "-c", text)
		cmd.Stdout, cmd.Stderr, cmd.Env = &out, &out, r.env
		if err := cmd.Run(); err != nil {
			return "", fmt.Errorf("$ %s: %w: %s", text, err, out.String())
		}
		all = strings.ReplaceAll(out.String(), r.dir, "/run/user/1000")
		r.done[key] = all
	}
	var keep strings.Builder
	n := 0
	for line := range strings.Lines(all) {
		if n++; n >= first && n <= last {
			keep.WriteString(strings.TrimRight(line, " \n") + "\n")
		}
	}
	return keep.String(), nil
}
