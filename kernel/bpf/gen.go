package bpf

// The objects are committed, so that no one needs clang to build. `make bpf`
// makes them again, with Debian's clang 14 and libbpf-dev; another compiler
// makes other bytes.
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel,bpfeb -output-stem fastpath -go-package bpf -type outer objects fastpath.c -- -O2 -g -mcpu=v3 -Wall -Werror -fdebug-prefix-map=${PWD}=. -I/usr/include/x86_64-linux-gnu
