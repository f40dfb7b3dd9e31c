package oracle

import "github.com/podlane/podlane/test/oracle/history"

// replays are how often a history that has shown mismatches is played again. A machine under load loses a packet now
// and then, and what a lost packet shows is no mismatch; a race in a proxy shows again in some of them.
const replays = 4

// again plays a history once more, the whole of it, until it shows mismatches, and gives these: whatever they are, they
// count. Without any in so many replays, what it showed at first was of that one time.
func again(h history.History, play func(history.History) ([]mismatch, error)) (found []mismatch, err error) {
	for range replays {
		if found, err = play(h); err != nil || len(found) > 0 {
			return found, err
		}
	}
	return nil, nil
}

// anew plays a history for its mismatches alone.
func anew(h history.History) ([]mismatch, error) { return Run(h, NewCoverage()) }
