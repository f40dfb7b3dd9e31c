package bpf

// reasons are the names of enum reason of maps.h, in its order.
var reasons = []string{
	"shortcut_local", "shortcut_direct", "shortcut_vxlan", "shortcut_in", "shortcut_encap", "shortcut_decap",
	"pass_other", "pass_protocol", "pass_fragment", "pass_options", "pass_nat", "pass_ttl", "pass_size", "pass_pod", "pass_source",
}

// Count is how many packets one reason has had.
type Count struct {
	Reason  string `json:"reason"` // shortcut_*: took the fast path; pass_*: why not
	Packets uint64 `json:"packets"`
}
