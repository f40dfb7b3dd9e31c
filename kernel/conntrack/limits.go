package conntrack

// Limits are the settings of the flow table that a cluster's traffic needs, as
// kube-proxy computes them (pkg/proxy/conntrack/sysctls.go): names below
// /proc/sys/net/netfilter, and the least value of each.
type Limits struct {
	Max      int // nf_conntrack_max: flows
	HashSize int // the module's parameter hashsize: buckets
	// Timeouts are in seconds, by the name of the sysctl.
	Timeouts map[string]int
	// ProcSys is where /proc/sys can be written, in a container; "" is /proc/sys.
	ProcSys string
}

// The figures of kube-proxy's defaults.
const (
	perCore      = 32768
	leastFlows   = 131072
	mostFlows    = 1 << 20 // of the part that grows with the cores
	flowsABucket = 4
	day          = 24 * 60 * 60
)

// LimitsFor gives the limits of a machine with so many cores.
func LimitsFor(cores int) Limits {
	flows := max(min(perCore*cores, mostFlows), leastFlows)
	return Limits{Max: flows, HashSize: flows / flowsABucket, Timeouts: map[string]int{
		"nf_conntrack_tcp_timeout_established": day,
		"nf_conntrack_tcp_timeout_close_wait":  60 * 60,
	}}
}

// Level is how full the flow table is. Max is 0 where there is no limit.
type Level struct{ Count, Max int }
