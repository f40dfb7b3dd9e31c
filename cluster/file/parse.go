package file

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	kjson "sigs.k8s.io/json"

	"github.com/podlane/podlane/cluster"
)

// kinds are the kinds of objects that are read, by apiVersion and kind.
var kinds = map[metav1.TypeMeta]func() metav1.Object{
	{APIVersion: "v1", Kind: "Node"}:                           func() metav1.Object { return new(corev1.Node) },
	{APIVersion: "v1", Kind: "Namespace"}:                      func() metav1.Object { return new(corev1.Namespace) },
	{APIVersion: "v1", Kind: "Pod"}:                            func() metav1.Object { return new(corev1.Pod) },
	{APIVersion: "v1", Kind: "Service"}:                        func() metav1.Object { return new(corev1.Service) },
	{APIVersion: "v1", Kind: "ReplicationController"}:          func() metav1.Object { return new(corev1.ReplicationController) },
	{APIVersion: "apps/v1", Kind: "Deployment"}:                func() metav1.Object { return new(appsv1.Deployment) },
	{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}: func() metav1.Object { return new(discoveryv1.EndpointSlice) },
	{APIVersion: "networking.k8s.io/v1", Kind: "ServiceCIDR"}:  func() metav1.Object { return new(networkingv1.ServiceCIDR) },
}

// ref names an object across files.
type ref struct {
	kind string
	key  cluster.Key
}

// entry is one object of a file.
type entry struct {
	ref
	object metav1.Object
	where  string
}

// parsed is what was read of one file.
type parsed struct {
	entries  []entry
	problems []cluster.Problem
	unknown  map[string]int // kinds that are not read, with their numbers
	failed   bool           // some document gave no object
	// unreadable says that the file could not be read at all.
	unreadable error
	sum        [sha256.Size]byte // of the text
}

// parse reads one file. Its name is for messages and tells JSON from YAML.
func parse(name string, data []byte) *parsed {
	docs, err := split(name, data)
	p := parseAll(name, docs)
	if err != nil {
		p.fail(fmt.Sprintf("document %d", len(docs)+1), err)
	}
	return p.out
}

// alone is how many documents are not worth another goroutine.
const alone = 200

// parseAll reads the documents of a file, on all processors where there are many,
// and gives what one after the other would give.
func parseAll(name string, docs []document) *parser {
	each := max(alone, (len(docs)+runtime.GOMAXPROCS(0)-1)/runtime.GOMAXPROCS(0))
	var parts []*parser
	var wait sync.WaitGroup
	for chunk := range slices.Chunk(docs, each) {
		p := &parser{name: name, out: &parsed{unknown: map[string]int{}}}
		parts = append(parts, p)
		wait.Go(func() { p.documents(chunk) })
	}
	wait.Wait()
	whole := &parser{name: name, out: &parsed{unknown: map[string]int{}}}
	for _, p := range parts {
		whole.out.entries = append(whole.out.entries, p.out.entries...)
		whole.out.problems = append(whole.out.problems, p.out.problems...)
		whole.out.failed = whole.out.failed || p.out.failed
		for kind, n := range p.out.unknown {
			whole.out.unknown[kind] += n
		}
	}
	return whole
}

func (p *parser) documents(docs []document) {
	for _, d := range docs {
		if err := p.document(d); err != nil {
			p.fail(d.where(), err)
		}
	}
}

type parser struct {
	name string
	out  *parsed
}

func (p *parser) fail(where string, err error) {
	p.out.failed = true
	p.out.problems = append(p.out.problems, fileProblem(p.name, where, err.Error()))
}

func fileProblem(name, where, text string) cluster.Problem {
	return cluster.Problem{Kind: "File", Key: cluster.Key{Name: name}, Field: where, Err: text}
}

func (p *parser) document(d document) error {
	data, err := d.toJSON()
	if err != nil {
		return err
	}
	return p.object(data, d.where(), metav1.TypeMeta{})
}

// object reads one object; assumed is its type where it names none itself, as in
// a list that the API server gave.
func (p *parser) object(data []byte, where string, assumed metav1.TypeMeta) error {
	var typ metav1.TypeMeta
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &typ); err != nil {
		return errors.New("is no Kubernetes object, which is a mapping with apiVersion and kind")
	}
	if typ == (metav1.TypeMeta{}) {
		typ = assumed
	}
	switch {
	case typ.Kind == "":
		return errors.New("kind is missing")
	case typ.APIVersion == "":
		return fmt.Errorf("%s: apiVersion is missing", typ.Kind)
	}
	if item, ok := strings.CutSuffix(typ.Kind, "List"); ok {
		return p.list(data, where, metav1.TypeMeta{APIVersion: typ.APIVersion, Kind: item})
	}
	if kinds[typ] == nil {
		p.out.unknown[kindName(typ)]++
		return nil
	}
	return p.known(data, where, typ)
}

// kindName names a kind that is not read; with its version where it is read in
// another one.
func kindName(typ metav1.TypeMeta) string {
	for known := range kinds {
		if known.Kind == typ.Kind {
			return typ.Kind + " of " + typ.APIVersion
		}
	}
	return typ.Kind
}

func (p *parser) list(data []byte, where string, item metav1.TypeMeta) error {
	if item.Kind == "" {
		item = metav1.TypeMeta{}
	}
	var list struct {
		Items []json.RawMessage `json:"items"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &list); err != nil {
		return errors.New("items is no list")
	}
	for i, raw := range list.Items {
		at := fmt.Sprintf("%s, items[%d]", where, i)
		if err := p.object(raw, at, item); err != nil {
			p.fail(at, err)
		}
	}
	return nil
}

func (p *parser) known(data []byte, where string, typ metav1.TypeMeta) error {
	o := kinds[typ]()
	strict, err := into(data, o)
	if err != nil {
		return fmt.Errorf("%s: %w", named(typ.Kind, data), err)
	}
	if err := complete(typ.Kind, o); err != nil {
		return err
	}
	r := ref{typ.Kind, cluster.Key{Namespace: o.GetNamespace(), Name: o.GetName()}}
	for _, err := range strict {
		p.out.problems = append(p.out.problems, strictProblem(p.name, where, r, err))
	}
	p.out.entries = append(p.out.entries, entry{r, o, where})
	return nil
}

// named gives the kind and, where it can be read, the name of an object that
// cannot be read otherwise.
func named(kind string, data []byte) string {
	var o struct {
		Metadata struct{ Namespace, Name string } `json:"metadata"`
	}
	if json.Unmarshal(data, &o) != nil || o.Metadata.Name == "" {
		return kind
	}
	return kind + " " + cluster.Key{Namespace: o.Metadata.Namespace, Name: o.Metadata.Name}.String()
}

// strictProblem makes a Problem of a field that the type does not have or that
// is there twice.
func strictProblem(name, where string, r ref, err error) cluster.Problem {
	p := cluster.Problem{Kind: r.kind, Key: r.key, Err: err.Error()}
	var field kjson.FieldError
	if errors.As(err, &field) {
		p.Field = field.FieldPath()
	}
	what := "there is no such field, so it has no effect"
	if strings.HasPrefix(err.Error(), "duplicate") {
		what = "is there twice: the last one counts"
	}
	p.Err = fmt.Sprintf("%s (%s, %s)", what, name, where)
	return p
}

// complete checks the names, which become parts of DNS names and of comments in
// the kernel, and gives an object without a namespace the namespace "default".
func complete(kind string, o metav1.Object) error {
	if o.GetName() == "" {
		return fmt.Errorf("%s: metadata.name is missing", kind)
	}
	check := validation.IsDNS1123Subdomain
	switch kind {
	case "Node", "Namespace", "ServiceCIDR":
		o.SetNamespace("")
	default:
		if o.GetNamespace() == "" {
			o.SetNamespace(metav1.NamespaceDefault)
		}
	}
	if kind == "Service" || kind == "Namespace" {
		check = validation.IsDNS1123Label
	}
	if why := check(o.GetName()); len(why) > 0 {
		return fmt.Errorf("%s: metadata.name %q: %s", kind, o.GetName(), why[0])
	}
	if ns := o.GetNamespace(); ns != "" {
		if why := validation.IsDNS1123Label(ns); len(why) > 0 {
			return fmt.Errorf("%s %s: metadata.namespace %q: %s", kind, o.GetName(), ns, why[0])
		}
	}
	return nil
}
