// Package ociimage writes container images as OCI archives: one layer of given
// files for each platform, from scratch. It is no general image library: it pulls
// and reads nothing, and needs no container runtime.
package ociimage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"strings"
	"time"
)

// Image is what an archive holds under one name.
type Image struct {
	// Name is the reference that importers give the image: "ghcr.io/podlane/podlane:v1".
	Name      string
	Labels    map[string]string
	Platforms []Platform
}

// Platform is the image of one architecture.
type Platform struct {
	Arch       string // GOARCH: "amd64"
	Files      []File
	Entrypoint []string
	User       string // "65532"; "" is root
}

// File is one file of the layer. The folders it is in are made.
type File struct {
	Path string // absolute
	Mode int64
	Data []byte
}

// The media types of the OCI image specification 1.1.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// descriptor points at a blob.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

type document struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        *descriptor  `json:"config,omitempty"`
	Layers        []descriptor `json:"layers,omitempty"`
	Manifests     []descriptor `json:"manifests,omitempty"`
}

type config struct {
	Architecture string        `json:"architecture"`
	OS           string        `json:"os"`
	Config       runtimeConfig `json:"config"`
	RootFS       rootFS        `json:"rootfs"`
}

type runtimeConfig struct {
	Entrypoint []string
	User       string            `json:",omitempty"`
	Labels     map[string]string `json:",omitempty"`
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

// Write writes the archive. The same Image gives the same bytes.
func Write(w io.Writer, image Image) error {
	a := archive{Writer: tar.NewWriter(w), written: map[string]bool{}}
	var manifests []descriptor
	for _, p := range image.Platforms {
		d, err := a.platform(image, p)
		if err != nil {
			return fmt.Errorf("image %s for %s: %w", image.Name, p.Arch, err)
		}
		manifests = append(manifests, d)
	}
	all, err := a.json(typeIndex, document{SchemaVersion: 2, MediaType: typeIndex, Manifests: manifests})
	if err != nil {
		return err
	}
	_, tag, _ := strings.Cut(path.Base(image.Name), ":")
	all.Annotations = map[string]string{"io.containerd.image.name": image.Name, "org.opencontainers.image.ref.name": tag}
	index, err := json.Marshal(document{SchemaVersion: 2, MediaType: typeIndex, Manifests: []descriptor{all}})
	if err != nil {
		return err
	}
	if err := a.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	if err := a.file("index.json", index); err != nil {
		return err
	}
	return a.Close()
}

// archive is an OCI layout on its way into a tar.
type archive struct {
	*tar.Writer
	written map[string]bool
}

func (a archive) file(name string, data []byte) error {
	if a.written[name] {
		return nil
	}
	a.written[name] = true
	if err := a.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	_, err := a.Writer.Write(data)
	return err
}

// blob writes a blob under its digest.
func (a archive) blob(mediaType string, data []byte) (descriptor, error) {
	sum := sha256.Sum256(data)
	name := hex.EncodeToString(sum[:])
	return descriptor{MediaType: mediaType, Digest: "sha256:" + name, Size: len(data)}, a.file("blobs/sha256/"+name, data)
}

func (a archive) json(mediaType string, o any) (descriptor, error) {
	data, err := json.Marshal(o)
	if err != nil {
		return descriptor{}, err
	}
	return a.blob(mediaType, data)
}

// platform writes layer, configuration and manifest of one architecture.
func (a archive) platform(image Image, p Platform) (descriptor, error) {
	packed, diffID, err := layer(p.Files)
	if err != nil {
		return descriptor{}, err
	}
	l, err := a.blob(typeLayer, packed)
	if err != nil {
		return descriptor{}, err
	}
	c, err := a.json(typeConfig, config{
		Architecture: p.Arch, OS: "linux", RootFS: rootFS{"layers", []string{diffID}},
		Config: runtimeConfig{Entrypoint: p.Entrypoint, User: p.User, Labels: image.Labels},
	})
	if err != nil {
		return descriptor{}, err
	}
	m, err := a.json(typeManifest, document{SchemaVersion: 2, MediaType: typeManifest, Config: &c, Layers: []descriptor{l}})
	m.Platform = &platform{p.Arch, "linux"}
	return m, err
}

// layer packs the files, and gives the digest of what was packed.
func layer(files []File) (packed []byte, diffID string, err error) {
	var out bytes.Buffer
	zip, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, "", err
	}
	sum := sha256.New()
	t := tar.NewWriter(io.MultiWriter(zip, sum))
	folders := map[string]bool{}
	for _, f := range files {
		if err := addFile(t, folders, f); err != nil {
			return nil, "", err
		}
	}
	if err := t.Close(); err != nil {
		return nil, "", err
	}
	if err := zip.Close(); err != nil {
		return nil, "", err
	}
	return out.Bytes(), "sha256:" + hex.EncodeToString(sum.Sum(nil)), nil
}

func addFile(t *tar.Writer, folders map[string]bool, f File) error {
	name := strings.TrimPrefix(path.Clean(f.Path), "/")
	parts := strings.Split(name, "/")
	for i := 1; i < len(parts); i++ {
		dir := strings.Join(parts[:i], "/") + "/"
		if folders[dir] {
			continue
		}
		folders[dir] = true
		if err := t.WriteHeader(&tar.Header{Name: dir, Mode: 0o755, Typeflag: tar.TypeDir, ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
	}
	h := &tar.Header{Name: name, Mode: f.Mode, Size: int64(len(f.Data)), Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0)}
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	_, err := t.Write(f.Data)
	return err
}
