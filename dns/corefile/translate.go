package corefile

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Settings is what podlane dns does of a Corefile. An empty field was not in it.
type Settings struct {
	Domain      string   // the cluster's zone
	TTL         int      // of the cluster's records in seconds, 0 is none given
	Pods        string   // disabled, insecure, verified
	Endpoints   string   // "all": Services whose endpoints have names, as in CoreDNS
	Upstreams   []string // addresses, or one path of a resolv.conf
	Stubs       []Stub
	Hosts       string // lines of hosts(5)
	HostsFile   string
	ServeStale  string // duration
	Health      string // address
	Metrics     string // address
	LameDuck    string // duration
	LogQueries  bool
	NotForward  bool // there is no forward for the root: other names are refused
	Problems    []Problem
	haveForward bool
}

// Stub is a zone with resolvers of its own.
type Stub struct {
	Zone      string
	Upstreams []string
}

// Problem is a line that podlane dns does not do, or does otherwise.
type Problem struct {
	Line int
	Text string
	Why  string
}

func (p Problem) String() string { return fmt.Sprintf("line %d: %s: %s", p.Line, p.Text, p.Why) }

// Translate reads a Corefile. A text that is none is an error; what podlane dns
// cannot do is in Problems, in the order of lines.
func Translate(text string) (*Settings, error) {
	blocks, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("corefile: %w", err)
	}
	s := &Settings{}
	for _, b := range blocks {
		s.block(b)
	}
	s.NotForward = !s.haveForward
	slices.SortStableFunc(s.Problems, func(a, b Problem) int { return a.Line - b.Line })
	return s, nil
}

func (s *Settings) problem(d Directive, format string, args ...any) {
	s.Problems = append(s.Problems, Problem{d.Line, d.String(), fmt.Sprintf(format, args...)})
}

// block translates a server block: one of the root, of the cluster's zone, or of
// a zone that others are asked for.
func (s *Settings) block(b Block) {
	head := Directive{Line: b.Line, Name: strings.Join(b.Keys, " ")}
	if strings.HasPrefix(head.Name, "(") {
		s.problem(head, "snippets are not read")
		return
	}
	var zones []string
	for _, k := range b.Keys {
		zone, err := zoneOf(k)
		if err != nil {
			s.problem(head, "%v", err)
			return
		}
		zones = append(zones, zone)
	}
	for _, d := range b.Plugins {
		s.plugin(d, zones)
	}
}

// zoneOf reads a key such as "example.org:53" or "dns://.".
func zoneOf(key string) (string, error) {
	if scheme, rest, ok := strings.Cut(key, "://"); ok {
		if scheme != "dns" {
			return "", fmt.Errorf("%s: only plain DNS is served", scheme)
		}
		key = rest
	}
	zone := key
	if host, port, err := net.SplitHostPort(key); err == nil {
		if zone = host; port != "53" {
			return "", fmt.Errorf("port %s: one server on one port is run; give --listen", port)
		}
	}
	if zone = strings.TrimSuffix(zone, "."); zone == "" {
		return ".", nil
	}
	return zone, nil
}

// silent are plugins whose work podlane dns does in any case.
var silent = []string{"errors", "loop", "reload", "loadbalance", "ready", "minimal", "any", "bufsize", "cancel"}

func (s *Settings) plugin(d Directive, zones []string) {
	root := slices.Contains(zones, ".")
	switch d.Name {
	case "kubernetes":
		s.kubernetes(d, zones)
	case "forward", "proxy":
		s.forward(d, zones, root)
	case "cache":
		s.cache(d)
	case "hosts":
		s.hosts(d)
	case "health":
		s.health(d)
	case "prometheus":
		s.Metrics = first(d.Args, ":9153")
	case "log":
		s.LogQueries = true
		if len(d.Args) > 0 || len(d.Body) > 0 {
			s.problem(d, "all questions are logged, in podlane's form")
		}
	default:
		if !slices.Contains(silent, d.Name) {
			s.problem(d, "there is no such thing in podlane dns")
		}
	}
}

func first(l []string, otherwise string) string {
	if len(l) > 0 {
		return l[0]
	}
	return otherwise
}

// kubernetes takes the settings of the cluster's zone, which where none is given
// is the server block's. What is not set is as CoreDNS has it.
func (s *Settings) kubernetes(d Directive, zones []string) {
	s.Endpoints, s.Pods, s.TTL = "all", "disabled", 5
	if len(d.Args) > 0 {
		zones = d.Args
	}
	for _, z := range zones {
		switch z = strings.TrimSuffix(z, "."); {
		case strings.HasSuffix(z, ".arpa"):
		case z == "":
			s.problem(d, "the root is no zone of a cluster")
		case s.Domain != "" && z != s.Domain:
			s.problem(d, "one zone of the cluster is served: %s, not %s", s.Domain, z)
		default:
			s.Domain = z
		}
	}
	for _, o := range d.Body {
		arg := first(o.Args, "")
		switch o.Name {
		case "pods":
			s.Pods = arg
		case "ttl":
			if n, err := strconv.Atoi(arg); err == nil && n >= 0 && n <= 3600 {
				s.TTL = n
				continue
			}
			s.problem(o, "no number of seconds")
		case "fallthrough":
			if slices.ContainsFunc(o.Args, func(z string) bool { return !strings.HasSuffix(strings.TrimSuffix(z, "."), ".arpa") }) || len(o.Args) == 0 {
				s.problem(o, "names of the cluster's zone go nowhere else; those of addresses do")
			}
		case "kubeconfig", "endpoint", "tls":
			s.problem(o, "give --kubeconfig")
		default:
			s.problem(o, "there is no such setting in podlane dns")
		}
	}
}

// forward takes the resolvers of the root, or of a stub zone.
func (s *Settings) forward(d Directive, zones []string, root bool) {
	if len(d.Args) < 2 {
		s.problem(d, "want forward FROM TO...")
		return
	}
	var to []string
	for _, t := range d.Args[1:] {
		if why := resolver(t); why != "" {
			s.problem(d, "%s: %s", t, why)
			continue
		}
		to = append(to, strings.TrimPrefix(t, "dns://"))
	}
	for _, o := range d.Body {
		switch o.Name {
		case "policy":
			if first(o.Args, "") != "sequential" {
				s.problem(o, "resolvers are asked in the order given, those that do not answer last")
			}
		case "max_concurrent":
			if first(o.Args, "") != "1000" {
				s.problem(o, "at most 1000 questions wait for resolvers")
			}
		case "expire", "max_fails", "health_check", "failfast_all_unhealthy_upstreams", "max_connect_attempts", "next":
			s.problem(o, "podlane dns has limits of its own")
		default:
			s.problem(o, "there is no such setting in podlane dns")
		}
	}
	if len(to) == 0 {
		return
	}
	s.route(d, strings.TrimSuffix(d.Args[0], "."), zones, root, to)
}

func (s *Settings) route(d Directive, from string, zones []string, root bool, to []string) {
	switch {
	case from == "" && root && s.haveForward:
		s.problem(d, "there are resolvers for all names already")
	case from == "" && root:
		s.Upstreams, s.haveForward = to, true
	case from == "":
		for _, z := range zones {
			s.stub(d, z, to)
		}
	default:
		s.stub(d, from, to)
	}
}

func (s *Settings) stub(d Directive, zone string, to []string) {
	if slices.ContainsFunc(to, isPath) {
		s.problem(d, "a zone of its own takes addresses, not a file")
		return
	}
	s.Stubs = append(s.Stubs, Stub{zone, to})
}

func isPath(t string) bool { return strings.HasPrefix(t, "/") }

// resolver says why a resolver cannot be asked, or "".
func resolver(t string) string {
	if isPath(t) {
		return ""
	}
	scheme, rest, ok := strings.Cut(t, "://")
	if !ok {
		rest = t
	} else if scheme != "dns" {
		return "only plain DNS is spoken to resolvers"
	}
	if _, err := netip.ParseAddr(rest); err == nil {
		return ""
	}
	if _, err := netip.ParseAddrPort(rest); err == nil {
		return ""
	}
	return "no address"
}

func (s *Settings) cache(d Directive) {
	for _, o := range d.Body {
		switch o.Name {
		case "serve_stale":
			s.ServeStale = first(o.Args, "1h")
		case "prefetch": // done in any case
		case "disable": // the cluster's names are never from a cache
			if z := first(o.Args[min(1, len(o.Args)):], "."); z == "." {
				s.problem(o, "answers from resolvers are always cached as long as they say")
			}
		default:
			s.problem(o, "answers are kept as long as resolvers say, within --cache MiB")
		}
	}
}

func (s *Settings) hosts(d Directive) {
	var lines []string
	if len(d.Args) > 0 {
		s.HostsFile = d.Args[0]
		if len(d.Args) > 1 {
			s.problem(d, "the entries are for all zones, not for %s", strings.Join(d.Args[1:], " "))
		}
	}
	fallthroughs := false
	for _, o := range d.Body {
		switch _, err := netip.ParseAddr(o.Name); {
		case err == nil:
			lines = append(lines, o.String())
		case o.Name == "fallthrough":
			fallthroughs = true
		default:
			s.problem(o, "entries have a TTL of 3600 s, and names of addresses")
		}
	}
	if !fallthroughs {
		s.problem(d, "without fallthrough all other names would be NXDOMAIN; they go to the resolvers")
	}
	for _, l := range lines {
		s.Hosts += l + "\n"
	}
}

func (s *Settings) health(d Directive) {
	s.Health = first(d.Args, ":8080")
	for _, o := range d.Body {
		if o.Name == "lameduck" {
			s.LameDuck = first(o.Args, "0s")
			continue
		}
		s.problem(o, "there is no such setting in podlane dns")
	}
}
