package scenarios

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
)

// The ports of the servers.
const (
	answerPort = "9000" // UDP: what came and the pod's name; TCP: the pod's name, and closes
	streamPort = "9001" // TCP: what comes goes back
	bulkPort   = "9002" // TCP: bulkSize bytes, and closes
)

const bulkSize = 256 << 10

// serve is the server of a pod, whose name it is given.
func serve(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("want the pod's name")
	}
	name := []byte(args[0])
	packets, err := net.ListenPacket("udp", ":"+answerPort)
	if err != nil {
		return err
	}
	go answerPackets(packets, name)
	for port, do := range map[string]func(net.Conn){
		answerPort: func(c net.Conn) { _, _ = c.Write(name) },
		streamPort: func(c net.Conn) { _, _ = io.Copy(c, c) },
		bulkPort:   func(c net.Conn) { _, _ = c.Write(bytes.Repeat([]byte{'x'}, bulkSize)) },
	} {
		l, err := net.Listen("tcp", ":"+port)
		if err != nil {
			return err
		}
		go accept(l, do)
	}
	<-ctx.Done()
	return nil
}

func answerPackets(c net.PacketConn, name []byte) {
	b := make([]byte, 1500)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		_, _ = c.WriteTo(append(append(b[:n:n], ' '), name...), from) // who asked sees that nothing came
	}
}

func accept(l net.Listener, do func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			do(c)
		}()
	}
}
