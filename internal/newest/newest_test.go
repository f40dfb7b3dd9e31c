package newest

import "testing"

func TestSend(t *testing.T) {
	c := make(Chan[int], 1)
	c.Send(1)
	c.Send(2)
	if got := <-c; got != 2 {
		t.Errorf("got %d, want the newest, 2", got)
	}
	go func() {
		for i := range 10_000 {
			c.Send(i)
		}
		close(c)
	}()
	last := -1
	for v := range c {
		if v <= last {
			t.Fatalf("%d came after %d", v, last)
		}
		last = v
	}
	if last != 9_999 {
		t.Errorf("the last value was %d, want 9999", last)
	}
}
