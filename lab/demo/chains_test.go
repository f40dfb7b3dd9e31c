package demo

import "testing"

func TestChainCount(t *testing.T) {
	const save = `*nat
:PL-SERVICES - [0:0]
[9:540] -A PREROUTING -j PL-SERVICES
[3:180] -A PL-SERVICES -d 10.96.36.84/32 -p tcp -m tcp --dport 8001 -j PL-SVC-1
[7:420] -A PL-SERVICES -d 10.96.36.84/32 -p tcp -m tcp --dport 8000 -m comment --comment "default/nginx-service" -j PL-SVC-2
COMMIT
`
	if n, err := chainCount(save, "10.96.36.84", 8000); n != 7 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := chainCount(save, "10.96.36.8", 8000); err == nil {
		t.Error("a rule of another address was taken")
	}
}
