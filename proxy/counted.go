package proxy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/podlane/podlane/cluster"
)

// ParseCounted reads Config.Counted: NAMESPACE/NAME of each Service.
func ParseCounted(texts []string) ([]cluster.Key, error) {
	var out []cluster.Key
	for _, t := range texts {
		ns, name, ok := strings.Cut(t, "/")
		if !ok || ns == "" || name == "" || strings.Contains(name, "/") {
			return nil, fmt.Errorf("%q: want NAMESPACE/NAME", t)
		}
		out = append(out, cluster.Key{Namespace: ns, Name: name})
	}
	slices.SortFunc(out, cluster.Key.Compare)
	return slices.Compact(out), nil
}

// counts says whether the endpoints of a Service are counted.
func (f facts) counts(s *cluster.Service) bool {
	if s.CountEndpoints {
		return true
	}
	_, asked := slices.BinarySearchFunc(f.counted, s.Key, cluster.Key.Compare)
	return asked
}
