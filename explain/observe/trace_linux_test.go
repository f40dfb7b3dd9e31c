package observe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/kernel/nft"
)

// TestMain lets the test binary stand for a process that traces until it is killed.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "trace" {
		tr, err := StartTrace(cluster.TCP, 40001, false)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("traces")
		time.Sleep(time.Minute)
		fmt.Println(tr.Stop())
		return
	}
	nettest.Main(m)
}

func tables(t *testing.T) []nft.Table {
	t.Helper()
	conn, err := nft.Dial(0)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	all, err := conn.Tables()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A trace sees the packets of its port, by their way through another table, and no others, and leaves nothing.
func TestTrace(t *testing.T) {
	nettest.New(t)
	rules := &nft.Tx{}
	table := nft.Table{Family: nft.IPv4, Name: "podlane-test"}
	chain := nft.Chain{Table: table, Name: "in", Hook: nft.Input, Type: "filter", Priority: nft.Filter}
	rules.AddTable(table)
	rules.AddChain(chain)
	rules.AddRule(chain, nft.NewRule(nft.L4Is(unix.IPPROTO_TCP, "tcp"), nft.Count()))
	conn, err := nft.Dial(0)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Commit(rules); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		port uint16
		seen bool
	}{{40001, true}, {40002, false}} {
		tr, err := StartTrace(cluster.TCP, 40001, false)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if is, err := Tracing(ctx, 40001, false); !is || err != nil {
			t.Errorf("no tracer is at work: %v", err)
		}
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(c.port)}}
		if _, err := d.DialContext(ctx, "tcp", "127.0.0.1:9"); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("port 9: %v", err)
		}
		cancel()
		// The kernel has reported all that a packet met when it is answered; Collect reads until its context's end.
		short, end := context.WithTimeout(t.Context(), 300*time.Millisecond)
		s := tr.Collect(short)
		end()
		if err := tr.Stop(); err != nil {
			t.Error(err)
		}
		met := slices.ContainsFunc(s.Steps, func(step string) bool { return strings.HasPrefix(step, "table podlane-test chain in rule") })
		if s.Seen != c.seen || met != c.seen {
			t.Errorf("from port %d: %+v", c.port, s)
		}
	}
	if left := tables(t); !slices.Equal(left, []nft.Table{table}) {
		t.Errorf("left behind: %v", left)
	}
}

// Where the process is killed, its table goes too; nobody takes it away before.
func TestTrace_killed(t *testing.T) {
	nettest.New(t)
	cmd := exec.Command(os.Args[0], "trace")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "traces\n" {
		t.Fatalf("%q: %v", line, err)
	}
	table := nft.Table{Family: nft.IPv4, Name: traceName(40001)}
	if have := tables(t); !slices.Equal(have, []nft.Table{table}) {
		t.Fatalf("the tracer's tables: %v", have)
	}
	conn, err := nft.Dial(0)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	steal := &nft.Tx{}
	steal.DeleteTable(table)
	if err := conn.Commit(steal); !errors.Is(err, unix.EPERM) {
		t.Errorf("another process deletes it: %v", err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if left := tables(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
