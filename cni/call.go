package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/podlane/podlane/cni/shim"
)

// netconf is what the agent reads of a network configuration.
type netconf struct {
	CNIVersion    string          `json:"cniVersion"`
	Name          string          `json:"name"`
	PrevResult    json.RawMessage `json:"prevResult"`
	RuntimeConfig struct {
		PortMappings []PortMapping `json:"portMappings"`
		Bandwidth    *Bandwidth    `json:"bandwidth"`
	} `json:"runtimeConfig"`
	// ValidAttachments is a pointer since "none is valid" and "the key is missing"
	// differ by all pods of the node.
	ValidAttachments *[]types.GCAttachment `json:"cni.dev/valid-attachments"`
}

// call is one request on its way through the steps. Once err is set, the
// remaining steps leave it alone.
type call struct {
	req    *Request
	conf   netconf
	alloc  Allocation
	fresh  bool // of ADD: the allocation was made by this call, and goes if it fails
	moved  bool // of ADD: the attachment exists and is now in another namespace
	result json.RawMessage
	err    error
}

// since is the version of the specification that introduced a command.
var since = map[string]string{"ADD": "0.1.0", "DEL": "0.1.0", "CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}

// parse reads a request as far as that needs no state.
func parse(r *Request) *call {
	c := &call{req: r}
	c.err = c.validate()
	return c
}

func (c *call) validate() error {
	r := c.req
	if r.Verb != shim.VerbCNI || since[r.Command] == "" {
		return &shim.Error{Code: shim.CodeEnvironment, Msg: fmt.Sprintf("unknown request %s %s", r.Verb, r.Command)}
	}
	if time.Now().After(r.Deadline) {
		return &shim.Error{Code: shim.CodeTryAgain, Msg: "the request waited longer than its client"}
	}
	if err := json.Unmarshal(r.Config, &c.conf); err != nil {
		return &shim.Error{Code: shim.CodeDecode, Msg: "network configuration", Details: err.Error()}
	}
	if err := c.checkVersion(); err != nil {
		return err
	}
	if r.Command == "GC" || r.Command == "STATUS" {
		return nil
	}
	return c.checkNames()
}

// checkVersion says whether the command exists in the configuration's version.
func (c *call) checkVersion() error {
	have := c.conf.CNIVersion
	if have == "" {
		have = "0.1.0" // the specification's word for a configuration without one
	}
	c.conf.CNIVersion = have
	enough, err := version.GreaterThanOrEqualTo(have, since[c.req.Command])
	if err != nil || !enough || !slices.Contains(version.All.SupportedVersions(), have) {
		return &shim.Error{Code: shim.CodeVersion, Msg: fmt.Sprintf("cniVersion %q: %s needs one of %s from %s on",
			have, c.req.Command, strings.Join(version.All.SupportedVersions(), " "), since[c.req.Command])}
	}
	return nil
}

// checkNames keeps what becomes part of a file's name harmless.
func (c *call) checkNames() error {
	if err := utils.ValidateContainerID(c.req.ContainerID); err != nil {
		return err
	}
	if len(c.req.ContainerID) > maxContainerID {
		return &shim.Error{Code: shim.CodeEnvironment, Msg: fmt.Sprintf("CNI_CONTAINERID: longer than %d characters", maxContainerID)}
	}
	if err := utils.ValidateInterfaceName(c.req.IfName); err != nil {
		return err
	}
	return nil
}

func (c *call) key() Key { return Key{c.req.ContainerID, c.req.IfName} }

// podArgs reads what kubelet's runtimes say of the pod in CNI_ARGS
// ("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;...").
func podArgs(args string) (namespace, pod, uid string) {
	for pair := range strings.SplitSeq(args, ";") {
		name, value, _ := strings.Cut(pair, "=")
		switch name {
		case "K8S_POD_NAMESPACE":
			namespace = value
		case "K8S_POD_NAME":
			pod = value
		case "K8S_POD_UID":
			uid = value
		}
	}
	return namespace, pod, uid
}

// answer replies to the request.
func (c *call) answer() {
	if c.err == nil {
		c.req.Reply(shim.Reply{Result: c.result})
		return
	}
	reply := shim.Error{Code: shim.CodeFailed, Msg: c.err.Error()}
	var own *shim.Error
	var theirs *types.Error
	switch {
	case errors.As(c.err, &own):
		reply = *own
	case errors.As(c.err, &theirs):
		reply = shim.Error{Code: theirs.Code, Msg: theirs.Msg, Details: theirs.Details}
	}
	c.req.Reply(shim.Reply{Error: &reply})
}
