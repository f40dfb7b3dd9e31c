package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

var blocks = regexp.MustCompile("(?s)```console\n.*?```")

// Both languages of the page show the same commands with the same output, and no
// command is without its block.
func TestPacketPath_languages(t *testing.T) {
	read := func(name string) []string {
		text, err := os.ReadFile("../../docs/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return blocks.FindAllString(string(text), -1)
	}
	en, zh := read("packet-path.md"), read("packet-path.zh-CN.md")
	if len(en) == 0 || strings.Join(en, "\n") != strings.Join(zh, "\n") {
		t.Errorf("%d and %d blocks, or their text differs: run make docs", len(en), len(zh))
	}
}

func TestRewrite(t *testing.T) {
	r := &runner{dir: t.TempDir(), env: os.Environ(), done: map[string]string{}}
	got, err := r.rewrite("a\n```console\n$ echo one; echo two; echo three   # lines 2-3\nold\n$ echo four\n```\n$ echo outside\n```\n$ not console\n```\n")
	want := "a\n```console\n$ echo one; echo two; echo three   # lines 2-3\ntwo\nthree\n$ echo four\nfour\n```\n$ echo outside\n```\n$ not console\n```\n"
	if err != nil || got != want {
		t.Errorf("%v: got\n%s", err, got)
	}
	if _, err := r.rewrite("```console\n$ exit 3\n```\n"); err == nil {
		t.Error("a command that fails was passed over")
	}
}
