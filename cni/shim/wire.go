package shim

import "encoding/json"

// Version is the version of the documents on the agent's socket.
const Version = 1

// MaxDocument bounds a request and a reply, in bytes.
const MaxDocument = 1 << 20

// DefaultSocket is the agent's socket where the network configuration names
// none.
const DefaultSocket = "/run/podlane/agent.sock"

// VerbCNI is the verb of a request that a container runtime made. Every other
// verb is the agent's own business.
const VerbCNI = "cni"

// Request is what a client asks the agent. Command and what follows it belong
// to VerbCNI: the runtime's words, unchanged.
type Request struct {
	Version     int    `json:"version"`
	Verb        string `json:"verb"`
	TimeoutMS   int64  `json:"timeoutMs,omitempty"` // how long the client waits
	Command     string `json:"command,omitempty"`   // CNI_COMMAND
	ContainerID string `json:"containerId,omitempty"`
	IfName      string `json:"ifName,omitempty"`
	Netns       string `json:"netns,omitempty"` // the path, as the runtime gave it
	Args        string `json:"args,omitempty"`  // CNI_ARGS
	// Config is the network configuration as it came on standard input, with
	// prevResult and runtimeConfig, so that a new capability needs no new shim.
	Config json.RawMessage `json:"config,omitempty"`
}

// Reply is the agent's answer: an Error, or a Result to be printed (which is
// absent where the command has none).
type Reply struct {
	Version int             `json:"version"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   *Error          `json:"error,omitempty"`
}

// Error is an error of the CNI specification (section 5, "Error").
type Error struct {
	Code    uint   `json:"code"`
	Msg     string `json:"msg"`
	Details string `json:"details,omitempty"`
}

// Error gives the message, and the details where there are any.
func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + ": " + e.Details
}

// The codes of the CNI specification that Podlane uses, and one of its own
// (codes from 100 on are a plugin's).
const (
	CodeVersion          uint = 1  // the configuration's cniVersion is not supported
	CodeUnknownContainer uint = 3  // no such attachment
	CodeEnvironment      uint = 4  // a CNI_ variable is missing or wrong
	CodeIO               uint = 5  // standard input cannot be read
	CodeDecode           uint = 6  // the configuration is no JSON
	CodeConfig           uint = 7  // the configuration lacks or breaks a key
	CodeTryAgain         uint = 11 // the agent is away, or cannot do it yet
	CodeNotAvailable     uint = 50 // STATUS: no ADD can be served
	CodeFailed           uint = 100
)
