package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/podlane/podlane/lab"
	"github.com/podlane/podlane/lab/demo"
	"github.com/podlane/podlane/overlay/fastpath"
)

func newLabDemo(name *string) *cobra.Command {
	var o demo.Options
	var files []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "A two-node cluster network, reached in every way, its agents killed, its paths measured",
		Long: `Bring up a cluster of two nodes on this machine, reach its Services in every way (a pod's address from a node and from a pod; the cluster IP and
the DNS name from a pod), kill the agents and ask again, then measure node to node, pod to pod, and pod to Service to pod. Every step says what it
does and the command that one could type oneself. It needs no root, takes about a minute and a half, and leaves nothing behind but the report.`,
		Example: `  podlane lab demo
  podlane lab demo --overlay vxlan --rounds 20
  podlane lab demo -f manifests/ --json > result.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) > 0 {
				objects, unread, err := readManifests(cmd, files)
				if err = errors.Join(unread, err); err != nil {
					return err
				}
				o.Objects = objects
			}
			return runDemo(cmd, *name, o, asJSON)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.FastPath, "fast-path", string(fastpath.Default), "the nodes' fast path: auto (where the kernel can, which needs root), on, off")
	f.StringVar(&o.ProxyBackend, "proxy-backend", "auto", "how Services are brought to the kernel: auto, nftables, iptables (by the host's programs)")
	f.StringVar(&o.Overlay, "overlay", "auto", "how packets reach other nodes' pods: auto, vxlan, direct")
	f.IntVar(&o.Rounds, "rounds", 5, "rounds of the evaluation")
	f.DurationVar(&o.Duration, "duration", 500*time.Millisecond, "of one measurement")
	f.StringVar(&o.Report, "report", "podlane-report.html", "file of the HTML report; empty: none")
	f.BoolVar(&asJSON, "json", false, "print one JSON document instead of the steps")
	filesFlag(cmd, &files)
	return cmd
}

func runDemo(cmd *cobra.Command, name string, o demo.Options, asJSON bool) error {
	o.Name = name
	if name == lab.DefaultName {
		o.Name = fmt.Sprintf("demo-%d", os.Getpid()) // beside a lab that is up
	}
	o.Version, o.Progress = versionText(), cmd.ErrOrStderr()
	o.Command = strings.Join(append([]string{"podlane"}, os.Args[min(1, len(os.Args)):]...), " ")
	if !asJSON {
		o.Story = cmd.OutOrStdout()
	}
	result, err := demo.Run(cmd.Context(), o)
	if cause := cmd.Context().Err(); cause != nil {
		return &exitError{130, cmp.Or(err, cause)}
	}
	if asJSON && result != nil {
		err = errors.Join(err, printJSON(cmd.OutOrStdout(), result))
	}
	return err
}
