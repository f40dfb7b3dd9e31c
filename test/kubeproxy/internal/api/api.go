// Package api stands in for a kube-apiserver towards service proxies: it lists
// and watches Nodes, Pods, Services, EndpointSlices and ServiceCIDRs from memory, in
// protobuf or JSON, and streams the initial objects as Kubernetes 1.32 and later
// do. It checks, allocates and stores nothing: what it hands out costs almost no
// processor time, which the measured programs share with it.
package api

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
)

// Object is what the server holds: *corev1.Service and so on.
type Object interface {
	runtime.Object
	metav1.Object
}

// Server is the server. Its methods are safe for use by several goroutines.
type Server struct {
	mu        sync.Mutex
	changed   *sync.Cond
	version   int
	kinds     map[string]*kind // by resource
	listed    map[string]time.Time
	epoch     int            // raised by Disconnect
	removable map[string]int // DaemonSets by path: times asked for
	OnDelete  func(path string)
}

// kind is the objects of one resource.
type kind struct {
	apiVersion, name string
	objects          map[string]event
	log              []event
	expired          int // versions before are no longer known
}

// event is an object as it is sent.
type event struct {
	version int
	typ     string // ADDED, MODIFIED, DELETED
	object  Object
	proto   []byte // a frame of the watch
}

// New gives a server without objects.
func New() *Server {
	s := &Server{version: 1, listed: map[string]time.Time{}, removable: map[string]int{}, kinds: map[string]*kind{
		"nodes":          {apiVersion: "v1", name: "Node"},
		"services":       {apiVersion: "v1", name: "Service"},
		"pods":           {apiVersion: "v1", name: "Pod"},
		"endpointslices": {apiVersion: "discovery.k8s.io/v1", name: "EndpointSlice"},
		"servicecidrs":   {apiVersion: "networking.k8s.io/v1", name: "ServiceCIDR"},
	}}
	for _, k := range s.kinds {
		k.objects = map[string]event{}
	}
	s.changed = sync.NewCond(&s.mu)
	return s
}

// Serve answers on l until it is closed.
func (s *Server) Serve(l net.Listener) {
	_ = (&http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}).Serve(l)
}

// Set adds or changes an object of a resource. The object belongs to the server
// afterwards. It gives when the object was on its way to the watchers.
func (s *Server) Set(resource string, o Object) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.kinds[resource]
	typ := "MODIFIED"
	if _, ok := k.objects[name(o)]; !ok {
		typ = "ADDED"
	}
	e := s.event(k, typ, o)
	k.objects[name(o)] = e
	k.log = append(k.log, e)
	s.changed.Broadcast()
	return time.Now()
}

// Delete removes an object.
func (s *Server) Delete(resource string, o Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.kinds[resource]
	delete(k.objects, name(o))
	k.log = append(k.log, s.event(k, "DELETED", o))
	s.changed.Broadcast()
}

// AddDaemonSet lets a DaemonSet be read and deleted once.
func (s *Server) AddDaemonSet(namespace, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removable[fmt.Sprintf("/apis/apps/v1/namespaces/%s/daemonsets/%s", namespace, name)] = 1
}

// Disconnect ends all watches, and forgets what was: clients have to read
// everything again.
func (s *Server) Disconnect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch++
	s.version++
	for _, k := range s.kinds {
		k.log, k.expired = nil, s.version
	}
	clear(s.listed)
	s.changed.Broadcast()
}

// Listed gives when the last object of all that was there had been handed to a
// client, for every one of the resources; ok is false as long as one is missing.
func (s *Server) Listed(resources ...string) (last time.Time, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range resources {
		at, ok := s.listed[r]
		if !ok {
			return time.Time{}, false
		}
		if at.After(last) {
			last = at
		}
	}
	return last, true
}

// Forget forgets when lists were handed out: for the next client.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.listed)
}

func name(o Object) string { return o.GetNamespace() + "/" + o.GetName() }

var proto = protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)

func (s *Server) event(k *kind, typ string, o Object) event {
	s.version++
	o.SetResourceVersion(strconv.Itoa(s.version))
	o.GetObjectKind().SetGroupVersionKind(k.gvk())
	return event{version: s.version, typ: typ, object: o, proto: frame(typ, o)}
}

// frame is an event as a watch in protobuf sends it: its length, then the event,
// in which the object is a whole message of its own.
func frame(typ string, o runtime.Object) []byte {
	raw, err := runtime.Encode(proto, o)
	if err != nil {
		panic(err) // only objects of this program come here
	}
	data, err := (&metav1.WatchEvent{Type: typ, Object: runtime.RawExtension{Raw: raw}}).Marshal()
	if err != nil {
		panic(err)
	}
	n := len(data)
	return append([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, data...)
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	k := s.kinds[parts[len(parts)-1]]
	q := r.URL.Query()
	switch {
	case strings.Contains(r.URL.Path, "/daemonsets/"):
		s.daemonSet(w, r)
	case k == nil && len(parts) > 2 && s.kinds[parts[len(parts)-2]] != nil:
		s.get(w, r, s.kinds[parts[len(parts)-2]], parts[len(parts)-1])
	case k == nil || r.Method != http.MethodGet: // events, and what else may be written
		status(w, http.StatusNotFound, "NotFound")
	case q.Get("watch") == "1" || q.Get("watch") == "true":
		s.watch(w, r, k, parts[len(parts)-1])
	default:
		s.list(w, r, k, parts[len(parts)-1])
	}
}

func status(w http.ResponseWriter, code int, reason string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: metav1.StatusReason(reason), Code: int32(code)})
}

func (s *Server) daemonSet(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	there := s.removable[r.URL.Path] > 0
	if there && r.Method == http.MethodDelete {
		delete(s.removable, r.URL.Path)
	}
	s.mu.Unlock()
	if !there {
		status(w, http.StatusNotFound, "NotFound")
		return
	}
	if r.Method == http.MethodDelete && s.OnDelete != nil {
		s.OnDelete(r.URL.Path)
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"kind":"DaemonSet","apiVersion":"apps/v1","metadata":{"name":"kube-proxy","namespace":"kube-system"}}`)
}

func (s *Server) get(w http.ResponseWriter, r *http.Request, k *kind, name string) {
	s.mu.Lock()
	e, ok := k.objects["/"+name]
	s.mu.Unlock()
	if !ok {
		status(w, http.StatusNotFound, "NotFound")
		return
	}
	write(w, r, e.object)
}

func protobufWanted(r *http.Request) bool {
	return strings.HasPrefix(r.Header.Get("Accept"), runtime.ContentTypeProtobuf)
}

func write(w http.ResponseWriter, r *http.Request, o runtime.Object) {
	if protobufWanted(r) {
		w.Header().Set("Content-Type", runtime.ContentTypeProtobuf)
		_ = proto.Encode(o, w) // the client may have gone
		return
	}
	w.Header().Set("Content-Type", runtime.ContentTypeJSON)
	_ = json.NewEncoder(w).Encode(o)
}
