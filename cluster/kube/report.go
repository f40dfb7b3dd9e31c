package kube

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podlane/podlane/cluster"
)

// logAgain is how often a trouble that lasts is logged.
const logAgain = time.Minute

// trouble is a request that did not succeed, for status and log.
type trouble struct {
	class string // those of one class are logged as one
	text  string
}

// away is the class of errors that are the connection's, not the resource's.
const away = "kube-apiserver"

// describe says what went wrong and what to do.
func describe(resource, verb string, err error) trouble {
	switch {
	case apierrors.IsForbidden(err):
		return trouble{resource, fmt.Sprintf("may not %s: %s: a (cluster) role must allow the verbs list and watch on %s",
			verb, err, resource)}
	case apierrors.IsUnauthorized(err):
		return trouble{away, fmt.Sprintf("%s: the server does not accept the credentials: %s", verb, err)}
	case apierrors.ReasonForError(err) != metav1.StatusReasonUnknown:
		return trouble{resource, fmt.Sprintf("%s: %s", verb, err)}
	}
	return trouble{away, fmt.Sprintf("%s: the server cannot be reached, what was read before stays: %s", verb, err)}
}

// noStreaming says that a server before Kubernetes 1.32 refused to stream the
// initial objects. The Reflector lists them then.
func noStreaming(o metav1.ListOptions, err error) bool {
	return o.SendInitialEvents != nil && (apierrors.IsInvalid(err) || apierrors.IsBadRequest(err))
}

// observe notes how a request went.
func (s *Source) observe(ctx context.Context, resource, verb string, err error) {
	if ctx.Err() != nil {
		return
	}
	s.reportMu.Lock()
	defer s.reportMu.Unlock()
	if err == nil {
		s.mended(resource)
		return
	}
	t := describe(resource, verb, err)
	s.troubles[resource] = t
	if last, ok := s.logged[t.class]; !ok || time.Since(last) >= logAgain {
		s.logged[t.class] = time.Now()
		s.log.Warn("kube-apiserver", "resource", resource, "err", t.text)
	}
}

// mended forgets the trouble of a resource, and says so once it was the last one
// of its class.
func (s *Source) mended(resource string) {
	t, ok := s.troubles[resource]
	if !ok {
		return
	}
	delete(s.troubles, resource)
	for _, other := range s.troubles {
		if other.class == t.class {
			return
		}
	}
	delete(s.logged, t.class)
	s.log.Info("kube-apiserver answers again", "resource", resource)
}

// Problems gives the requests that do not succeed at present, each with its
// resource.
func (s *Source) Problems() []cluster.Problem {
	s.reportMu.Lock()
	defer s.reportMu.Unlock()
	var out []cluster.Problem
	for resource, t := range s.troubles {
		out = append(out, cluster.Problem{Kind: "kube-apiserver", Key: cluster.Key{Name: resource}, Err: t.text})
	}
	slices.SortFunc(out, func(a, b cluster.Problem) int { return strings.Compare(a.Key.Name, b.Key.Name) })
	return out
}
