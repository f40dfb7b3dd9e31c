// Package apply runs the host's iptables programs to bring the chains of
// proxy/iptables to the kernel, one atomic restore for each family. It decides
// nothing about them, and touches no chain of anyone else.
package apply

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/proxy"
	"github.com/podlane/podlane/proxy/iptables"
)

// patience is how long a program may take, waiting for others' included.
const patience = 2 * time.Minute

// ErrNoProgram is that the host's programs are not there, or cannot be reached.
var ErrNoProgram = errors.New("the iptables backend needs the host's programs")

// Applier owns our chains of one network namespace. It is not safe for use by
// several goroutines.
type Applier struct {
	root     string
	families []*family
}

// family is one of iptables and ip6tables.
type family struct {
	program string
	v6      bool
	table   *proxy.Table // what the kernel has; nil: not known
	pods    []netip.Addr
	rules   *iptables.Rules
	chains  map[string][]string // ours, that are there
	broken  bool                // the last Audit has found them wrong
	built   bool
}

// New makes an Applier for both families. The programs are the host's: root is
// the folder in which the host's files are, "" for "/" (in a container: where the
// host's root is mounted; the programs are run chrooted there, in the container's
// network namespace, which has to be the host's).
func New(root string) *Applier {
	return &Applier{root: root, families: []*family{{program: "iptables"}, {program: "ip6tables", v6: true}}}
}

// Apply makes the kernel have what the Table and the node's pods ask for. With an
// error the other family is done nevertheless, and the next call reads what is
// there.
func (a *Applier) Apply(t *proxy.Table, pods []netip.Addr) error {
	var errs []error
	for _, f := range a.families {
		if f.table == t && slices.Equal(f.pods, pods) {
			continue
		}
		if err := a.apply(f, t, pods); err != nil {
			f.table = nil
			errs = append(errs, fmt.Errorf("service proxy, %s: %w", f.program, err))
		}
	}
	return errors.Join(errs...)
}

func (a *Applier) apply(f *family, t *proxy.Table, pods []netip.Addr) error {
	rules := iptables.Render(t, pods, f.v6)
	have := present{chains: f.chains}
	if f.table == nil {
		var err error
		if have, err = a.read(f); err != nil {
			return err
		}
	}
	if _, err := a.run(f.program+"-restore", rules.Restore(have.chains, have.missing), "--noflush", "--wait", "30"); err != nil {
		return err
	}
	f.chains = map[string][]string{}
	for table, c := range rules.Tables {
		f.chains[table] = c.Names
	}
	f.built, f.broken = f.built || f.broken || len(have.missing) > 0, false
	f.table, f.pods, f.rules = t, slices.Clone(pods), rules
	return nil
}

// Programs is an error where Apply can do nothing, of neither family, for want of the
// programs.
func (a *Applier) Programs() error {
	var errs []error
	for _, f := range a.families {
		_, err := a.find(f.program + "-save")
		if err == nil {
			_, err = a.find(f.program + "-restore")
		}
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Has says, by proxy.Family, for which families the last Apply had no error.
func (a *Applier) Has() (has [2]bool) {
	for _, f := range a.families {
		has[proxy.Family(f.v6)] = f.table != nil
	}
	return has
}

// Built says, once, that a family's chains, or what leads to them, were made since the
// last call where they were missing: connections may have begun that nothing translates.
func (a *Applier) Built() (built bool) {
	for _, f := range a.families {
		built, f.built = built || f.built, false
	}
	return built
}

// Audit looks whether our chains, the number of their rules and what leads to them
// are right; where not, the next Apply makes them.
func (a *Applier) Audit() error {
	for _, f := range a.families {
		if f.table == nil {
			continue
		}
		have, err := a.read(f)
		if err != nil {
			return fmt.Errorf("service proxy, %s: audit: %w", f.program, err)
		}
		if len(have.missing) > 0 || !maps.Equal(have.rules, f.rules.Sizes()) {
			f.table, f.broken = nil, true
		}
	}
	return nil
}

// Doubtful says that the next Apply has something to do even where the Table did
// not change.
func (a *Applier) Doubtful() bool {
	return slices.ContainsFunc(a.families, func(f *family) bool { return f.table == nil })
}

// Problems are the frontends that several Services want.
func (a *Applier) Problems() []cluster.Problem {
	var ps []cluster.Problem
	for _, f := range a.families {
		if f.rules != nil {
			ps = append(ps, f.rules.Problems...)
		}
	}
	return ps
}

// Remove removes our chains: for an uninstall, or when another backend has the
// Services.
func (a *Applier) Remove() error {
	var errs []error
	for _, f := range a.families {
		f.table, f.rules = nil, nil
		have, err := a.read(f)
		if err == nil {
			if input := iptables.Remove(have.chains, have.missing); input != "" {
				_, err = a.run(f.program+"-restore", input, "--noflush", "--wait", "30")
			}
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// present is what there is of ours.
type present struct {
	chains  map[string][]string // by table
	rules   map[string]int      // number in each, by table and chain
	missing []iptables.Jump
}

func (a *Applier) read(f *family) (present, error) {
	save, err := a.run(f.program+"-save", "")
	if err != nil {
		return present{}, err
	}
	p := present{map[string][]string{}, map[string]int{}, slices.Clone(iptables.Jumps)}
	table := ""
	for line := range strings.Lines(save) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "*"):
			table = line[1:]
		case strings.HasPrefix(line, ":"+iptables.Prefix):
			name, _, _ := strings.Cut(line[1:], " ")
			p.chains[table] = append(p.chains[table], name)
			p.rules[table+" "+name] += 0
		case strings.HasPrefix(line, "-A "+iptables.Prefix):
			name, _, _ := strings.Cut(line[len("-A "):], " ")
			p.rules[table+" "+name]++
		case strings.HasPrefix(line, "-A "):
			p.missing = slices.DeleteFunc(p.missing, func(j iptables.Jump) bool {
				return j.Table == table && line == "-A "+j.Chain+" "+j.Rule
			})
		}
	}
	return p, nil
}

func (a *Applier) run(program, input string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	path, err := a.find(program)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	if a.root != "" {
		cmd.SysProcAttr, cmd.Dir = &syscall.SysProcAttr{Chroot: a.root}, "/"
	}
	var out, errs strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// find gives the path of a program inside root. It may be a link, which leads to
// somewhere inside root too and is not followed here, where it would not.
func (a *Applier) find(program string) (string, error) {
	if a.root == "" {
		path, err := exec.LookPath(program)
		if err != nil {
			return "", fmt.Errorf("%w: %w (in a container: --iptables-root)", ErrNoProgram, err)
		}
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin/", "/sbin/", "/usr/bin/", "/bin/", "/usr/local/sbin/"} {
		if _, err := os.Lstat(a.root + dir + program); err == nil {
			return dir + program, nil
		}
	}
	return "", fmt.Errorf("%w: %s is not in %s", ErrNoProgram, program, a.root)
}
