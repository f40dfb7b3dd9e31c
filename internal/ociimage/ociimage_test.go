package ociimage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"strings"
	"testing"
)

func sample() Image {
	of := func(arch string) Platform {
		return Platform{Arch: arch, Entrypoint: []string{"/bin/x"}, User: "65532", Files: []File{
			{Path: "/bin/x", Mode: 0o755, Data: []byte("program for " + arch)},
			{Path: "/etc/same", Mode: 0o644, Data: []byte("same")},
		}}
	}
	return Image{Name: "example.org/x:v1", Platforms: []Platform{of("amd64"), of("arm64")}}
}

// untar gives the files of an archive by name.
func untar(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := files[h.Name]; twice {
			t.Errorf("%s is there twice", h.Name)
		}
		files[h.Name] = data
	}
}

// blob reads a blob and checks it against its descriptor.
func blob(t *testing.T, files map[string][]byte, d descriptor) []byte {
	t.Helper()
	hash := strings.TrimPrefix(d.Digest, "sha256:")
	data := files["blobs/sha256/"+hash]
	sum := sha256.Sum256(data)
	if hex.EncodeToString(sum[:]) != hash || len(data) != d.Size {
		t.Fatalf("blob %s: %d bytes, want %d", d.Digest, len(data), d.Size)
	}
	return data
}

func decode[T any](t *testing.T, data []byte) (o T) {
	t.Helper()
	if err := json.Unmarshal(data, &o); err != nil {
		t.Fatal(err)
	}
	return o
}

// TestWrite walks the archive as an importer does, from index.json to the files.
func TestWrite(t *testing.T) {
	var b, again bytes.Buffer
	if err := Write(&b, sample()); err != nil {
		t.Fatal(err)
	}
	if err := Write(&again, sample()); err != nil || !bytes.Equal(b.Bytes(), again.Bytes()) {
		t.Error("the same image twice gave other bytes", err)
	}
	files := untar(t, &b)
	top := decode[document](t, files["index.json"])
	if len(top.Manifests) != 1 || top.Manifests[0].Annotations["io.containerd.image.name"] != "example.org/x:v1" ||
		top.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != "v1" {
		t.Fatalf("index.json %s", files["index.json"])
	}
	all := decode[document](t, blob(t, files, top.Manifests[0]))
	for i, arch := range []string{"amd64", "arm64"} {
		if p := all.Manifests[i].Platform; p.Architecture != arch || p.OS != "linux" {
			t.Errorf("platform %+v", p)
		}
		m := decode[document](t, blob(t, files, all.Manifests[i]))
		c := decode[config](t, blob(t, files, *m.Config))
		zip, err := gzip.NewReader(bytes.NewReader(blob(t, files, m.Layers[0])))
		if err != nil {
			t.Fatal(err)
		}
		plain, err := io.ReadAll(zip)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(plain)
		if c.RootFS.DiffIDs[0] != "sha256:"+hex.EncodeToString(sum[:]) || c.Architecture != arch || c.Config.User != "65532" || c.Config.Entrypoint[0] != "/bin/x" {
			t.Errorf("config %+v", c)
		}
		in := untar(t, bytes.NewReader(plain))
		if string(in["bin/x"]) != "program for "+arch || string(in["etc/same"]) != "same" {
			t.Errorf("layer %v", in)
		}
		if _, ok := in["bin/"]; !ok {
			t.Error("the folder is missing")
		}
	}
}
