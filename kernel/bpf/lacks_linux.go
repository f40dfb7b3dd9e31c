package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// lookups says why programs cannot ask conntrack for a flow; "" where they can, as far
// as one may see without any right. btf is the folder of the kernel's types, in which the names of its functions stand as they are.
func lookups(btf string, admin bool) string {
	const lookup, since = "bpf_skb_ct_lookup", "bpf_skb_ct_lookup (Linux 5.18)"
	has := func(file string) (there, has bool) {
		text, err := os.ReadFile(filepath.Join(btf, file))
		return err == nil, bytes.Contains(text, []byte("\x00"+lookup+"\x00"))
	}
	if _, inside := has("vmlinux"); inside {
		return ""
	}
	switch module, inside := has("nf_conntrack"); {
	case inside && admin:
		return ""
	case inside:
		return "conntrack is a module of this kernel, to whose functions only CAP_SYS_ADMIN gives a program access"
	case module:
		return "this kernel's conntrack has no " + since + ", which no right makes up for"
	}
	return "this kernel has no " + since + ", or its conntrack is a module that is not loaded, or without BTF (CONFIG_DEBUG_INFO_BTF_MODULES)"
}

// isAdmin says that this process has CAP_SYS_ADMIN.
func isAdmin() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	return unix.Capget(&header, &caps[0]) == nil && caps[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}

// mayLoad tries a program that asks for the rights that ours need, and for nothing else: CAP_BPF and
// CAP_NET_ADMIN for being one, CAP_PERFMON for giving away a pointer.
func mayLoad() bool {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: asm.Instructions{asm.Mov.Reg(asm.R0, asm.R1), asm.Return()},
	})
	if err != nil {
		return false
	}
	_ = p.Close()
	return true
}

// Unavailable says of an error of loading programs that they are not available,
// and why. The verifier says of a faulty program too that it is not permitted.
func Unavailable(err error) error {
	if err == nil {
		return nil
	}
	if (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)) && !mayLoad() {
		return fmt.Errorf("%w: this process may not load it (CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN of the machine): %v", ErrUnavailable, firstWords(err))
	}
	return refusal{err}
}

// refusal is an ErrRefused. It says the first words, and has all of them.
type refusal struct{ cause error }

func (r refusal) Error() string   { return fmt.Sprintf("%v: %s", ErrRefused, firstWords(r.cause)) }
func (r refusal) Unwrap() []error { return []error{ErrRefused, r.cause} }

// firstWords leaves out what the verifier has to say, which fills a screen.
func firstWords(err error) string {
	var v *ebpf.VerifierError
	if errors.As(err, &v) {
		return v.Cause.Error()
	}
	return err.Error()
}
