package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cluster/file"
)

// wireVersion is the version of the protocol on DIR/lab.sock: the front sends
// one byte, to which up to three descriptors are attached, and one request; the
// holder answers with replies, the last of which is Done. For exec the front
// may send signals meanwhile. All are JSON documents.
const (
	wireVersion = 1
	wireMark    = 'P'
)

type request struct {
	Version int    `json:"version"`
	Verb    string `json:"verb"` // status wait exec log apply delete agents down

	Exec    *execRequest   `json:"exec,omitempty"`    // log: the target alone
	Objects *file.Objects  `json:"objects,omitempty"` // apply, delete
	Agents  *agentsRequest `json:"agents,omitempty"`
}

type execRequest struct {
	Target string   `json:"target"`
	Argv   []string `json:"argv"`
	Env    []string `json:"env,omitempty"`
}

type agentsRequest struct {
	Action AgentAction `json:"action"`
	Nodes  []string    `json:"nodes,omitempty"` // empty: all
}

type signalMessage struct {
	Signal int `json:"signal"`
}

type reply struct {
	Progress string   `json:"progress,omitempty"`
	Done     bool     `json:"done,omitempty"`
	Error    string   `json:"error,omitempty"`
	Code     int      `json:"code,omitempty"` // exec: the exit status
	Status   *Status  `json:"status,omitempty"`
	Path     string   `json:"path,omitempty"`     // log
	Problems []string `json:"problems,omitempty"` // apply: objects that cannot be used
}

// sendRequest writes a request with the descriptors of files.
func sendRequest(conn *net.UnixConn, req request, files []*os.File) error {
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := conn.WriteMsgUnix([]byte{wireMark}, rights, nil); err != nil {
		return err
	}
	req.Version = wireVersion
	return json.NewEncoder(conn).Encode(req)
}

// receiveRequest reads what sendRequest wrote. The files are the caller's to
// close, also on error.
func receiveRequest(conn *net.UnixConn) (req request, dec *json.Decoder, files []*os.File, err error) {
	first, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(3*4))
	n, oobn, _, _, err := conn.ReadMsgUnix(first, oob)
	if err != nil {
		return req, nil, nil, err
	}
	if n != 1 || first[0] != wireMark {
		return req, nil, nil, errors.New("not a request")
	}
	if files, err = rightsFiles(oob[:oobn]); err != nil {
		return req, nil, files, err
	}
	dec = json.NewDecoder(conn)
	if err := dec.Decode(&req); err != nil {
		return req, nil, files, err
	}
	if req.Version != wireVersion {
		return req, nil, files, fmt.Errorf("the lab speaks protocol version %d, the request is of version %d: use the podlane that started the lab, or start it again", wireVersion, req.Version)
	}
	return req, dec, files, nil
}

func rightsFiles(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, nil
}
