package shim

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// loopbackType is the plugin that containerd before 2.0 and CRI-O start for each
// pod beside the network's own, to bring lo up. Where a node has none, ours is
// installed under that name too.
const loopbackType = "loopback"

// loopbackResult is what the runtime gets (section 5 of the CNI specification;
// "version" is of those before 1.0).
type loopbackResult struct {
	CNIVersion string              `json:"cniVersion"`
	Interfaces []loopbackInterface `json:"interfaces"`
	IPs        []loopbackIP        `json:"ips"`
}

type loopbackInterface struct {
	Name    string `json:"name"`
	MAC     string `json:"mac"`
	Sandbox string `json:"sandbox"`
}

type loopbackIP struct {
	Version   string `json:"version"`
	Interface int    `json:"interface"`
	Address   string `json:"address"`
}

// loopback answers without the agent. lo goes with its namespace, so that nothing
// but ADD has anything to do.
func (c *call) loopback() answer {
	if c.req.Command != "ADD" {
		return answer{}
	}
	// Results of 0.1.0 and 0.2.0 have another form, and no runtime that needs one.
	if i := slices.Index(supported, c.conf.CNIVersion); i < slices.Index(supported, "0.3.0") {
		return answer{err: &Error{CodeVersion, "cniVersion " + c.conf.CNIVersion + ": loopback needs 0.3.0 or newer", ""}}
	}
	namespace, socket, err := openNamespace(c.req.Netns)
	if err != nil {
		return answer{err: &Error{CodeEnvironment, "CNI_NETNS " + c.req.Netns, err.Error()}}
	}
	defer unix.Close(namespace)
	defer unix.Close(socket)
	if err := loopbackUp(socket); err != nil {
		return answer{err: &Error{CodeFailed, "lo up", err.Error()}}
	}
	text, err := json.Marshal(loopbackResult{
		CNIVersion: c.conf.CNIVersion,
		Interfaces: []loopbackInterface{{"lo", "00:00:00:00:00:00", c.req.Netns}},
		IPs:        []loopbackIP{{"4", 0, "127.0.0.1/8"}, {"6", 0, "::1/128"}},
	})
	if err != nil {
		return answer{err: &Error{CodeFailed, "result", err.Error()}}
	}
	return answer{result: text}
}

// loopbackUp brings up the link of index 1, which is lo in every namespace.
func loopbackUp(socket int) error {
	const length = unix.SizeofNlMsghdr + unix.SizeofIfInfomsg
	m := make([]byte, length)
	binary.NativeEndian.PutUint32(m, length)
	binary.NativeEndian.PutUint16(m[4:], unix.RTM_NEWLINK)
	binary.NativeEndian.PutUint16(m[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	body := m[unix.SizeofNlMsghdr:]
	binary.NativeEndian.PutUint32(body[4:], 1)
	binary.NativeEndian.PutUint32(body[8:], unix.IFF_UP)
	binary.NativeEndian.PutUint32(body[12:], unix.IFF_UP)
	if err := retry(func() error { return unix.Sendto(socket, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) }); err != nil {
		return os.NewSyscallError("send", err)
	}
	reply := make([]byte, 4096)
	var n int
	err := retry(func() (err error) {
		n, _, err = unix.Recvfrom(socket, reply, 0)
		return err
	})
	if err != nil {
		return os.NewSyscallError("receive", err)
	}
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(reply[4:]) != unix.NLMSG_ERROR {
		return os.NewSyscallError("netlink", unix.EBADMSG)
	}
	if errno := -int32(binary.NativeEndian.Uint32(reply[unix.SizeofNlMsghdr:])); errno != 0 {
		return os.NewSyscallError("netlink", unix.Errno(errno))
	}
	return nil
}
