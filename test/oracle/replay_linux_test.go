package oracle

import (
	"errors"
	"testing"

	"github.com/podlane/podlane/test/oracle/history"
)

// TestAgain: one replay of all that shows a mismatch is enough, and an error is none the less.
func TestAgain(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		name   string
		shows  int // the replay that shows one, from 1; 0 is none
		err    error
		played int
	}{
		{"never again", 0, nil, replays},
		{"at once", 1, nil, 1},
		{"in the last one", replays, nil, replays},
		{"an error", 2, broken, 2},
	} {
		played := 0
		found, err := again(history.Random(1, 2), func(h history.History) ([]mismatch, error) {
			played++
			switch {
			case played != c.shows:
				return nil, nil
			case c.err != nil:
				return nil, c.err
			}
			return []mismatch{{Step: 1}}, nil
		})
		if played != c.played || !errors.Is(err, c.err) || (len(found) > 0) != (c.shows > 0 && c.err == nil) {
			t.Errorf("%s: %v, %v after %d replays", c.name, found, err, played)
		}
	}
}
