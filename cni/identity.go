package cni

import (
	"crypto/sha256"
	"encoding/base32"
	"strconv"
	"strings"

	"github.com/podlane/podlane/kernel/link"
)

// linkName is the name of the host's end of an attachment: "pl" and 13
// characters of a hash, 15 in all (IFNAMSIZ). The salt makes another one where
// two attachments have the same.
func linkName(k Key, salt int) string {
	text := base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(digest("link", k, salt))
	return link.Prefix + strings.ToLower(text[:13])
}

// macs are the Ethernet addresses of an attachment's two ends: the same
// whenever they are asked for, unicast and locally administered (IEEE 802,
// section 8.2), so that nothing that hands out persistent ones changes them.
func macs(k Key) (pod, host link.MAC) {
	copy(pod[:], digest("pod", k, 0))
	copy(host[:], digest("host", k, 0))
	pod[0] = pod[0]&^1 | 2
	host[0] = host[0]&^1 | 2
	return pod, host
}

func digest(what string, k Key, salt int) []byte {
	sum := sha256.Sum256([]byte(what + "\x00" + k.ContainerID + "\x00" + k.IfName + "\x00" + strconv.Itoa(salt)))
	return sum[:]
}
