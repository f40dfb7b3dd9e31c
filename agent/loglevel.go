package agent

import (
	"encoding/json"
	"fmt"

	"github.com/podlane/podlane/cni/shim"
)

// VerbLogLevel is the verb of a request for another log level, whose Config is its
// name as JSON.
const VerbLogLevel = "loglevel"

func (a *Agent) logLevel(config string) shim.Reply {
	var name string
	err := json.Unmarshal([]byte(config), &name)
	if err == nil && a.config.LogLevel == nil {
		err = fmt.Errorf("this agent's log level cannot be changed")
	}
	if err == nil {
		err = a.config.LogLevel.UnmarshalText([]byte(name))
	}
	if err != nil {
		return shim.Reply{Error: &shim.Error{Code: shim.CodeDecode, Msg: "log level: want debug, info, warn or error: " + err.Error()}}
	}
	a.log.Info("log level", "level", name)
	return shim.Reply{}
}
