package takeover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"

	"github.com/podlane/podlane/agent/ports"
)

const (
	table   = "kube-proxy"    // of its nftables mode
	entry   = "KUBE-SERVICES" // the chain where its iptables mode begins
	ipvsDev = "kube-ipvs0"
)

var families = map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6"}

// Detect looks for kube-proxy in the calling thread's network namespace. It needs
// CAP_NET_ADMIN there.
func Detect(ctx context.Context) (Evidence, error) {
	var e Evidence
	var errs []error
	for _, find := range []func() ([]string, error){nftablesTables, func() ([]string, error) { return Chains("nat", entry) }} {
		rules, err := find()
		e.Rules, errs = append(e.Rules, rules...), append(errs, err)
	}
	if _, err := net.InterfaceByName(ipvsDev); err == nil {
		e.IPVS, e.Rules = true, append(e.Rules, "device "+ipvsDev+" of IPVS mode")
	}
	slices.Sort(e.Rules)
	e.Answers, e.Processes = answers(ctx), processes("kube-proxy")
	return e, errors.Join(errs...)
}

// Chains finds a chain of a table of iptables, of both families, in the calling
// thread's network namespace: of the iptables over nftables, and of the old one. No
// program is run for that.
func Chains(table, chain string) ([]string, error) {
	found, err := nftablesChains(table, chain)
	legacy, err2 := legacyChains(table, chain)
	return append(found, legacy...), errors.Join(err, err2)
}

// nftablesTables finds the tables of the nftables mode.
func nftablesTables() ([]string, error) {
	_, tables, err := listTables(table)
	var found []string
	for _, t := range tables {
		found = append(found, fmt.Sprintf("nftables table %s %s", families[t.Family], table))
	}
	return found, err
}

func nftablesChains(table, chain string) ([]string, error) {
	c, tables, err := listTables(table)
	var found []string
	for _, t := range tables {
		_, err := c.ListChain(t, chain)
		if err == nil {
			found = append(found, fmt.Sprintf("iptables chain %s of table %s %s", chain, families[t.Family], table))
		} else if !strings.Contains(err.Error(), "no such file") { // the library wraps no error
			return nil, fmt.Errorf("nftables: chain %s: %w", chain, err)
		}
	}
	return found, err
}

// listTables gives the tables of that name.
func listTables(name string) (*nftables.Conn, []*nftables.Table, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, nil, fmt.Errorf("nftables: %w", err)
	}
	tables, err := c.ListTables()
	if err != nil {
		return nil, nil, fmt.Errorf("nftables: list tables: %w", err)
	}
	return c, slices.DeleteFunc(tables, func(t *nftables.Table) bool { return t.Name != name || families[t.Family] == "" }), nil
}

// processes finds those of a name in the calling thread's network namespace. In a
// container without the host's processes it finds none.
func processes(name string) []string {
	here, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return nil
	}
	var found []string
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is right
	for _, dir := range dirs {
		comm, err := os.ReadFile(dir + "/comm")
		if err != nil || strings.TrimSpace(string(comm)) != name {
			continue
		}
		if ns, err := os.Readlink(dir + "/ns/net"); err == nil && ns == here {
			found = append(found, "process "+filepath.Base(dir))
		}
	}
	return found
}

// answers asks the ports of kube-proxy. Our own answers carry our name; another
// server on a port of kube-proxy's counts as it, since we cannot have the port.
func answers(ctx context.Context) []string {
	var found []string
	for _, url := range []string{"http://127.0.0.1:10249/proxyMode", "http://127.0.0.1:10256/healthz"} {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		if a := answer(ctx, url); a != "" {
			found = append(found, a)
		}
		cancel()
	}
	return found
}

func answer(ctx context.Context, url string) string {
	addr := strings.Split(url, "/")[2]
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return ""
	}
	// The connection is made here, on the calling thread, which may be in a namespace
	// of its own.
	dial := func(context.Context, string, string) (net.Conn, error) { return conn, nil }
	client := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	defer conn.Close()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return ""
	}
	resp, err := client.Do(r)
	if err != nil {
		return addr + " (something that is no kube-proxy)"
	}
	defer resp.Body.Close()
	if resp.Header.Get("Server") == ports.Server {
		return ""
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 32))
	if err == nil && strings.HasSuffix(url, "/proxyMode") {
		return fmt.Sprintf("%s (mode %s)", addr, body)
	}
	return addr
}

// legacyTables asks the file that lists the tables of one family of iptables that is
// not over nftables: asking the kernel for a table that is not in use would make
// it.
func legacyTables(path, table string) (bool, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return slices.Contains(strings.Fields(string(data)), table), err
}
