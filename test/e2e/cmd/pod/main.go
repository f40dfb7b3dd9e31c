// Command pod is all that runs in the pods of the tests: servers that say who they
// are, clients, and the pause program of containerd's sandboxes. It is one static
// file, so that no image is ever pulled.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const usage = `pod serve [ADDR]          HTTP: /hostname /client /ready /drain (ends readiness); UDP: echoes the host's name
pod pause                 waits
pod get URL...            prints what each answers; exit 1 where one does not answer 200
pod load URL SECONDS N    N clients, a new connection each request; prints "ok failed first-error"
pod udp ADDR              sends a datagram and prints the answer
pod pulse ADDR SECONDS    a datagram every 10 ms from one socket; prints "sent answered longest-gap-in-ms"
pod stop                  ends the pulses of this pod before their time
pod lookup NAME...        prints the addresses of each
pod ask ADDR NAME SECONDS a DNS question every 20 ms, each from a new socket, with one more try after a second; prints "asked
                      answered-at-once never-answered longest-gap-in-ms", of those answered at once
pod write TEXT            prints it to stdout`

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "pod:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, verb string, args []string) error {
	switch verb {
	case "pause":
		<-ctx.Done()
		return nil
	case "serve":
		return serve(ctx, append(args, ":8080")[0])
	case "get":
		return each(args, get)
	case "lookup":
		return each(args, lookup)
	case "udp":
		return each(args, udp)
	case "pulse":
		return pulse(ctx, args)
	case "stop":
		return stopPulses()
	case "load":
		return load(ctx, args)
	case "ask":
		return ask(ctx, args)
	case "write":
		fmt.Println(strings.Join(args, " "))
		return nil
	}
	return errors.New(usage)
}

func each(args []string, f func(string) (string, error)) error {
	for _, a := range args {
		text, err := f(a)
		if err != nil {
			return err
		}
		fmt.Println(text)
	}
	return nil
}

// serve answers until it is told to end; then it goes on for a second, since its
// address is still in use at other nodes.
func serve(ctx context.Context, addr string) error {
	host, _ := os.Hostname()
	var draining atomic.Bool
	mux := http.NewServeMux()
	mux.HandleFunc("/hostname", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, host) })
	mux.HandleFunc("/client", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RemoteAddr) })
	mux.HandleFunc("/drain", func(http.ResponseWriter, *http.Request) { draining.Store(true) })
	mux.HandleFunc("/ready", func(w http.ResponseWriter, _ *http.Request) {
		if draining.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	packets, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	go echo(packets, host)
	s := &http.Server{Addr: addr, Handler: mux}
	done := make(chan error, 1)
	go func() { done <- s.ListenAndServe() }()
	fmt.Println("serving at", addr)
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	time.Sleep(2 * time.Second)
	end, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	return s.Shutdown(end)
}

func echo(c net.PacketConn, host string) {
	b := make([]byte, 1500)
	for {
		_, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		_, _ = c.WriteTo([]byte(host), from)
	}
}

var client = &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func get(url string) (string, error) {
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, resp.Status)
	}
	return string(text), err
}

func lookup(name string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupHost(ctx, name)
	return strings.Join(addrs, " "), err
}

func udp(addr string) (string, error) {
	c, err := net.Dial("udp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := c.Write([]byte("x")); err != nil {
		return "", err
	}
	b := make([]byte, 1500)
	n, err := c.Read(b)
	return string(b[:n]), err
}

// load asks a URL again and again, until the time is over or it is told to end.
func load(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errors.New(usage)
	}
	seconds, err1 := strconv.ParseFloat(args[1], 64)
	clients, err2 := strconv.Atoi(args[2])
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	end := time.Now().Add(time.Duration(seconds * float64(time.Second)))
	var ok, failed atomic.Int64
	var first atomic.Value
	done := make(chan bool)
	for range clients {
		go func() {
			for time.Now().Before(end) && ctx.Err() == nil {
				if _, err := get(args[0]); err != nil {
					failed.Add(1)
					first.CompareAndSwap(nil, time.Now().Format("15:04:05.000")+" "+err.Error())
					continue
				}
				ok.Add(1)
			}
			done <- true
		}()
	}
	for range clients {
		<-done
	}
	fmt.Println(ok.Load(), failed.Load(), first.Load())
	return nil
}

// pulse measures for how long nothing came back. The answers of the echo server
// are in order on one path, so that they are counted and not matched.
func pulse(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New(usage)
	}
	seconds, err := strconv.ParseFloat(args[1], 64)
	if err != nil {
		return err
	}
	c, err := net.ListenPacket("udp", ":0") // not connected: an ICMP error ends nothing
	if err != nil {
		return err
	}
	defer c.Close()
	to, err := net.ResolveUDPAddr("udp", args[0])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds*float64(time.Second)))
	defer cancel()
	context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Now()) })
	var sent atomic.Int64
	go func() {
		for tick := time.NewTicker(10 * time.Millisecond); ctx.Err() == nil; <-tick.C {
			_, _ = c.WriteTo([]byte("x"), to) // no route is what is measured
			sent.Add(1)
		}
	}()
	answered, last, longest := 0, time.Now(), time.Duration(0)
	b := make([]byte, 1500)
	for ctx.Err() == nil {
		_, _, err := c.ReadFrom(b)
		longest = max(longest, time.Since(last))
		if err == nil {
			answered++
			last = time.Now()
		}
	}
	fmt.Println(sent.Load(), answered, longest.Milliseconds())
	return nil
}

// stopPulses asks the other processes of this pod to end, but for its first, which
// is the pod.
func stopPulses() error {
	entries, err := os.ReadDir("/proc")
	for _, e := range entries {
		pid, notProcess := strconv.Atoi(e.Name())
		if notProcess != nil || pid == 1 || pid == os.Getpid() {
			continue
		}
		err = errors.Join(err, syscall.Kill(pid, syscall.SIGTERM))
	}
	return err
}
