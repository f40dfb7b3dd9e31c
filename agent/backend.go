package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/plan"
	"github.com/podlane/podlane/proxy"
	rules "github.com/podlane/podlane/proxy/iptables"
	iptables "github.com/podlane/podlane/proxy/iptables/apply"
	"github.com/podlane/podlane/proxy/nftables"
	"github.com/podlane/podlane/takeover"
)

// Backend is how Services are brought to the kernel.
type Backend string

// The backends.
const (
	AutoBackend Backend = "auto"     // nftables, where the kernel can
	NFTables    Backend = "nftables" // in process
	IPTables    Backend = "iptables" // by the host's programs
)

// ParseBackend reads the flag --proxy-backend.
func ParseBackend(s string) (Backend, error) {
	switch b := Backend(s); b {
	case AutoBackend, NFTables, IPTables:
		return b, nil
	}
	return "", fmt.Errorf("--proxy-backend %q: want auto, nftables or iptables", s)
}

// backend is the choice of a backend and what is needed to change it: the rules of
// the other one are removed once the chosen one's are in.
type backend struct {
	log    *slog.Logger
	chains *iptables.Applier // nil: nftables
	root   string            // where the host's files are
	record string            // file that names the backend that has rules in the kernel
	other  bool              // the other one may have rules
}

// choose decides, by asking the kernel and not for its version. loaded says that
// tables of ours are there, so that there is nothing to ask.
func (b *backend) choose(want Backend, conn *nft.Conn, loaded bool) {
	b.other = true
	if want == AutoBackend || want == "" {
		want = NFTables
		if !loaded {
			if err := loads(conn); lacks(err) {
				b.log.Warn("this kernel cannot load the nftables backend: iptables is used", "err", err)
				want = IPTables
			}
		}
	}
	if want == IPTables {
		b.chains = iptables.New(b.root)
	}
}

// probed is the table of loads.
var probed = nft.Table{Family: nft.IPv4, Name: nft.Prefix + "probe"}

// loads loads our rules without any Service under another name, and deletes them.
func loads(conn *nft.Conn) error {
	_, err := nftables.Load(nftables.NewRuleset(probed.Family, probed.Name), &proxy.Table{}, nil, nil, conn.Commit)
	return errors.Join(err, endProbe(conn))
}

// endProbe deletes what loads loaded, that of an agent killed meanwhile too.
func endProbe(conn *nft.Conn) error {
	tx := &nft.Tx{}
	tx.AddTable(probed) // so that there is one
	tx.DeleteTable(probed)
	return conn.Commit(tx)
}

// ofServices says that a table of ours is the service proxy's, of whatever layout:
// podlane-NUMBER or podlane-NUMBER-b.
func ofServices(t nft.Table) bool {
	layout := strings.TrimSuffix(strings.TrimPrefix(t.Name, nft.Prefix), "-b")
	return layout != "" && strings.Trim(layout, "0123456789") == ""
}

// lacks says that the kernel does not know what it was asked for, rather than that
// we may not ask or that it has no memory.
func lacks(err error) bool {
	for _, e := range []error{unix.EOPNOTSUPP, unix.ENOENT, unix.EINVAL, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// left says that the kernel has rules of the iptables backend, by our record.
func (b *backend) left() bool {
	data, err := os.ReadFile(b.record)
	return err == nil && strings.TrimSpace(string(data)) == string(IPTables)
}

func (b *backend) name() string {
	if b.chains != nil {
		return string(IPTables)
	}
	return string(NFTables)
}

// apply brings the Plan's Services to the kernel, and then the other backend's
// rules out of it.
func (s *services) apply(p *plan.Plan) error {
	if s.backend.chains == nil {
		if err := s.applier.Apply(p.Table, p.PodAddrs); err != nil {
			return err
		}
		return s.backend.removeChains()
	}
	if s.backend.other {
		if err := s.backend.note(); err != nil {
			return err
		}
	}
	if err := s.backend.chains.Apply(p.Table, p.PodAddrs); err != nil {
		return err
	}
	if !s.backend.other {
		return nil
	}
	s.backend.other = false
	return s.applier.Remove()
}

// has says, by proxy.Family, of which families the kernel has what the last apply was for.
func (s *services) has() [2]bool {
	if s.backend.chains != nil {
		return s.backend.chains.Has()
	}
	return s.applier.Has()
}

// built says, once, that rules were made where there may have been none.
func (s *services) built() bool {
	if s.backend.chains != nil {
		return s.backend.chains.Built()
	}
	return s.applier.Built()
}

// note records, before there are any, that there are chains. Without the programs
// there will be none.
func (b *backend) note() error {
	if err := b.chains.Programs(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(b.record), 0o755); err != nil {
		return err
	}
	return os.WriteFile(b.record, []byte(IPTables+"\n"), 0o600)
}

// removeChains removes what the iptables backend left, where it was used.
func (b *backend) removeChains() error {
	if !b.other {
		return nil
	}
	if b.left() {
		err := iptables.New(b.root).Remove()
		if errors.Is(err, iptables.ErrNoProgram) {
			err = stranded(err)
		}
		if err != nil {
			return err
		}
		b.log.Info("no rules of the iptables backend are there any more")
	}
	if err := os.Remove(b.record); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	b.other = false
	return nil
}

// stranded says what of the iptables backend is in the kernel, where what can remove
// it is not within reach. These rules go on translating, to endpoints of former times.
func stranded(cause error) error {
	var found []string
	for table, chain := range rules.Entries {
		chains, err := takeover.Chains(table, chain)
		if err != nil {
			return errors.Join(cause, err)
		}
		found = append(found, chains...)
	}
	if len(found) == 0 {
		return nil
	}
	slices.Sort(found)
	return fmt.Errorf("rules of the iptables backend are left (%s). An agent with the chart's `iptables: remove` removes them; for an uninstallation, on the node: podlane agent --cleanup. %w",
		strings.Join(found, ", "), cause)
}

// backendRecord is the backend's record, in the state folder.
const backendRecord = "proxy-backend"

// RemoveChains removes what the iptables backend of an agent with that state folder left.
func RemoveChains(stateDir, iptablesRoot string, log *slog.Logger) error {
	b := backend{log: log, root: iptablesRoot, record: filepath.Join(stateDir, backendRecord), other: true}
	return b.removeChains()
}

// remove removes the rules of both.
func (s *services) remove() error {
	s.backend.other = true
	return errors.Join(s.applier.Remove(), s.backend.removeChains())
}
