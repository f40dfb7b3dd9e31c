package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/podlane/podlane/dns"
)

func newDNSQueries() *cobra.Command {
	var at, pod, namespace, client string
	cmd := &cobra.Command{
		Use:   "queries",
		Short: "Show the questions that a running podlane dns answers, as they come",
		Long: `Show questions as they are answered: time, client, pod, protocol, name, type, code, size, time taken. It asks a podlane dns in the same network
namespace, at its --health address; nobody else is shown anything. Pods are known by name where that server has --node. It ends with Ctrl-C.`,
		Example: `  kubectl -n kube-system exec podlane-dns-x7k2p -- /podlane dns queries --pod shop/web-0
  podlane dns queries --client 10.244.1.7`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := url.Values{"pod": {pod}, "namespace": {namespace}, "client": {client}}
			err := copyQueries(cmd.Context(), "http://"+at+"/queries?"+v.Encode(), cmd.OutOrStdout())
			if cmd.Context().Err() != nil {
				return nil
			}
			return err
		},
	}
	cmd.Flags().StringVar(&at, "at", "127.0.0.1:1054", "the server's --health address, on loopback")
	cmd.Flags().StringVar(&pod, "pod", "", "only of this pod, NAMESPACE/NAME")
	cmd.Flags().StringVar(&namespace, "namespace", "", "only of pods of this namespace")
	cmd.Flags().StringVar(&client, "client", "", "only of this address")
	cmd.MarkFlagsMutuallyExclusive("pod", "namespace", "client")
	return cmd
}

func copyQueries(ctx context.Context, url string, w io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("podlane dns: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return fmt.Errorf("podlane dns: %s: %s", resp.Status, text)
	}
	if _, err := io.Copy(w, resp.Body); err != nil {
		return err
	}
	return errors.New("podlane dns: the server has ended")
}

// queries streams the questions that match. Only clients in the same network
// namespace may see what pods ask.
func (d *dnsServer) queries(w http.ResponseWriter, r *http.Request) {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !from.Addr().Unmap().IsLoopback() {
		http.Error(w, "only over loopback", http.StatusForbidden)
		return
	}
	match, err := queryMatch(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	list, stop := d.server.Watch(match)
	defer stop()
	out := http.NewResponseController(w)
	if out.Flush() != nil {
		return
	}
	for {
		select {
		case <-r.Context().Done():
			return
		case q := <-list:
			if _, err := fmt.Fprintln(w, q); err != nil || len(list) == 0 && out.Flush() != nil {
				return
			}
		}
	}
}

func queryMatch(v url.Values) (func(dns.Query) bool, error) {
	pod, namespace, client := v.Get("pod"), v.Get("namespace"), v.Get("client")
	switch {
	case pod != "":
		return func(q dns.Query) bool { return q.Pod.String() == pod }, nil
	case namespace != "":
		return func(q dns.Query) bool { return q.Pod.Namespace == namespace }, nil
	case client != "":
		a, err := netip.ParseAddr(client)
		if err != nil {
			return nil, fmt.Errorf("client %q: no address", client)
		}
		return func(q dns.Query) bool { return q.Client.Addr().Unmap() == a.Unmap() }, nil
	}
	return func(dns.Query) bool { return true }, nil
}
