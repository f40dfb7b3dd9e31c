package api

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func (k *kind) gvk() schema.GroupVersionKind {
	return schema.FromAPIVersionAndKind(k.apiVersion, k.name)
}

// list answers a list; no client that streams asks for one.
func (s *Server) list(w http.ResponseWriter, r *http.Request, k *kind, resource string) {
	s.mu.Lock()
	meta := metav1.ListMeta{ResourceVersion: strconv.Itoa(s.version)}
	var l runtime.Object
	switch resource {
	case "nodes":
		l = &corev1.NodeList{ListMeta: meta, Items: items[corev1.Node](k)}
	case "pods":
		l = &corev1.PodList{ListMeta: meta, Items: items[corev1.Pod](k)}
	case "services":
		l = &corev1.ServiceList{ListMeta: meta, Items: items[corev1.Service](k)}
	case "endpointslices":
		l = &discoveryv1.EndpointSliceList{ListMeta: meta, Items: items[discoveryv1.EndpointSlice](k)}
	default:
		l = &networkingv1.ServiceCIDRList{ListMeta: meta, Items: items[networkingv1.ServiceCIDR](k)}
	}
	s.mu.Unlock()
	l.GetObjectKind().SetGroupVersionKind(k.gvk().GroupVersion().WithKind(k.name + "List"))
	write(w, r, l)
	s.noteListed(resource)
}

func items[T any](k *kind) []T {
	var out []T
	for _, e := range k.objects {
		out = append(out, *any(e.object).(*T))
	}
	return out
}

func (s *Server) noteListed(resource string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listed[resource] = time.Now()
}

// watch sends what is there, where the client asks for it, and then every change.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, k *kind, resource string) {
	q := r.URL.Query()
	since, _ := strconv.Atoi(q.Get("resourceVersion"))
	initial := q.Get("sendInitialEvents") == "true"
	var events []event
	s.mu.Lock()
	epoch := s.epoch
	if initial {
		for _, e := range k.objects {
			events = append(events, e)
		}
		since = s.version
	}
	gone := !initial && since < k.expired
	s.mu.Unlock()
	if gone {
		status(w, http.StatusGone, "Expired")
		return
	}
	out := &stream{w: w, proto: protobufWanted(r)}
	out.begin()
	if initial {
		for _, e := range events {
			if e.typ != "ADDED" { // the frame is of its last change
				e.typ, e.proto = "ADDED", frame("ADDED", e.object)
			}
			out.send(e)
		}
		out.bookmark(k, since)
		out.flush()
		s.noteListed(resource)
	}
	s.follow(r, k, out, since, epoch)
}

// follow sends changes until the client goes.
func (s *Server) follow(r *http.Request, k *kind, out *stream, since, epoch int) {
	stop := make(chan struct{})
	defer close(stop)
	go func() { // wakes follow when the client goes
		select {
		case <-r.Context().Done():
			s.mu.Lock()
			defer s.mu.Unlock()
			s.changed.Broadcast()
		case <-stop:
		}
	}()
	out.flush()
	s.mu.Lock()
	defer s.mu.Unlock()
	for at := 0; ; {
		for at < len(k.log) && k.log[at].version <= since {
			at++
		}
		if r.Context().Err() != nil || s.epoch != epoch {
			return
		}
		if at == len(k.log) {
			s.changed.Wait()
			continue
		}
		batch := k.log[at:len(k.log):len(k.log)]
		at = len(k.log)
		s.mu.Unlock()
		for _, e := range batch {
			out.send(e)
		}
		out.flush()
		s.mu.Lock()
	}
}

// stream is one watch's answer.
type stream struct {
	w     http.ResponseWriter
	proto bool
}

func (o *stream) begin() {
	o.w.Header().Set("Content-Type", runtime.ContentTypeJSON)
	if o.proto {
		o.w.Header().Set("Content-Type", runtime.ContentTypeProtobuf+";stream=watch")
	}
	o.w.WriteHeader(http.StatusOK)
}

func (o *stream) flush() { o.w.(http.Flusher).Flush() }

func (o *stream) send(e event) {
	if o.proto {
		_, _ = o.w.Write(e.proto)
		return
	}
	raw, err := json.Marshal(e.object)
	if err != nil {
		return
	}
	_ = json.NewEncoder(o.w).Encode(metav1.WatchEvent{Type: e.typ, Object: runtime.RawExtension{Raw: raw}})
}

// bookmark says that the initial objects were all.
func (o *stream) bookmark(k *kind, version int) {
	var end Object
	switch k.name {
	case "Node":
		end = &corev1.Node{}
	case "Pod":
		end = &corev1.Pod{}
	case "Service":
		end = &corev1.Service{}
	case "EndpointSlice":
		end = &discoveryv1.EndpointSlice{}
	default:
		end = &networkingv1.ServiceCIDR{}
	}
	end.GetObjectKind().SetGroupVersionKind(k.gvk())
	end.SetResourceVersion(strconv.Itoa(version))
	end.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	o.send(event{typ: "BOOKMARK", object: end, proto: frame("BOOKMARK", end)})
}
