package link

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	ethtoolGetTxChecksum = 0x16 // ETHTOOL_GTXCSUM
	ethtoolSetTxChecksum = 0x17 // ETHTOOL_STXCSUM
)

// ethtoolValue is struct ethtool_value.
type ethtoolValue struct{ cmd, data uint32 }

// ifreqData is struct ifreq with a pointer.
type ifreqData struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [24 - unsafe.Sizeof(uintptr(0))]byte
}

// softChecksum says whether a device's transmit checksums are off, in the calling
// thread's namespace.
func softChecksum(dev string) (bool, error) {
	v := ethtoolValue{cmd: ethtoolGetTxChecksum}
	err := ethtool(dev, &v)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENODEV) {
		return false, nil
	}
	return err == nil && v.data == 0, err
}

// setSoftChecksum changes it where it is not so.
func setSoftChecksum(dev string, off bool) error {
	if is, err := softChecksum(dev); err != nil || is == off {
		return err
	}
	v := ethtoolValue{cmd: ethtoolSetTxChecksum, data: 1}
	if off {
		v.data = 0
	}
	return ethtool(dev, &v)
}

func ethtool(dev string, v *ethtoolValue) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	}
	if err != nil {
		return fmt.Errorf("ethtool %s: %w", dev, err)
	}
	defer unix.Close(fd)
	r := ifreqData{data: unsafe.Pointer(v)}
	copy(r.name[:unix.IFNAMSIZ-1], dev)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&r)))
	runtime.KeepAlive(v)
	if errno != 0 {
		return fmt.Errorf("ethtool %s: %w", dev, errno)
	}
	return nil
}

// features adds to our VXLAN links what netlink does not tell.
func (h *Handle) features(s State) error {
	for name, l := range s.Links {
		if l.Kind != VXLAN {
			continue
		}
		if h.sysctl.here() != nil {
			return nil // who reads another namespace's links does not ask for this
		}
		soft, err := softChecksum(name)
		if err != nil {
			return err
		}
		l.SoftChecksum = soft
		s.Links[name] = l
	}
	return nil
}
