package tables

import (
	_ "github.com/lithammer/dedent" // kube-proxy's tests need it
)
