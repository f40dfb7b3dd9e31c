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

// podMAC is the Ethernet address of an attachment's end in the pod: the same
// whenever it is asked for, unicast and locally administered (IEEE 802, section
// 8.2), so that nothing that hands out persistent ones changes it.
func podMAC(k Key) (mac link.MAC) {
	copy(mac[:], digest("pod", k, 0))
	mac[0] = mac[0]&^1 | 2
	return mac
}

func digest(what string, k Key, salt int) []byte {
	sum := sha256.Sum256([]byte(what + "\x00" + k.ContainerID + "\x00" + k.IfName + "\x00" + strconv.Itoa(salt)))
	return sum[:]
}
