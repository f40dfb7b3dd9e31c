package socket

// As kernel/bpf/gen.go; `make bpf` makes these objects too.
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel,bpfeb -output-stem socket -go-package socket objects socket.c -- -O2 -g -mcpu=v3 -Wall -Werror -fdebug-prefix-map=${PWD}=. -I/usr/include/x86_64-linux-gnu
