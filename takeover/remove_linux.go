package takeover

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/google/nftables"
)

// RemoveRules removes kube-proxy's rules from the calling thread's network
// namespace. It says what it did. For the chains of iptables it runs the programs
// of the host, of both variants: they alone know in which form the rules are.
// Flows that kube-proxy translated go on: their translation is in the flow table.
func RemoveRules(ctx context.Context) (done []string, err error) {
	done, err = removeTables()
	if err != nil {
		return done, err
	}
	for _, program := range []string{"iptables", "ip6tables"} {
		for _, variant := range variants(program) {
			did, err := removeChains(ctx, variant)
			if err != nil {
				return done, err
			}
			if did {
				done = append(done, "chains of "+variant+" removed")
			}
		}
	}
	return done, nil
}

func removeTables() (done []string, err error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	tables, err := c.ListTables()
	if err != nil {
		return nil, fmt.Errorf("nftables: list tables: %w", err)
	}
	for _, t := range tables {
		if family, known := families[t.Family]; known && t.Name == table {
			c.DelTable(t)
			done = append(done, fmt.Sprintf("nftables table %s %s deleted", family, table))
		}
	}
	if len(done) == 0 {
		return nil, nil
	}
	if err := c.Flush(); err != nil {
		return nil, fmt.Errorf("nftables: delete the tables %s: %w", table, err)
	}
	return done, nil
}

// variants are the installed forms of iptables or ip6tables.
func variants(program string) []string {
	var found []string
	for _, v := range []string{"-nft", "-legacy"} {
		if _, err := exec.LookPath(program + v + "-save"); err == nil {
			found = append(found, program+v)
		}
	}
	if len(found) == 0 {
		if _, err := exec.LookPath(program + "-save"); err == nil {
			found = append(found, program)
		}
	}
	return found
}

func removeChains(ctx context.Context, variant string) (bool, error) {
	save, err := run(ctx, "", variant+"-save")
	if err != nil {
		return false, err
	}
	input := removal(save)
	if input == "" {
		return false, nil
	}
	_, err = run(ctx, input, variant+"-restore", "--noflush", "--wait", "10")
	return err == nil, err
}

func run(ctx context.Context, input, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &errs
	if err := cmd.Run(); err != nil {
		return "", errors.Join(fmt.Errorf("%s: %w", name, err), errors.New(strings.TrimSpace(errs.String())))
	}
	return out.String(), nil
}
