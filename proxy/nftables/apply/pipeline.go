package apply

import (
	"errors"

	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/proxy/nftables"
)

// ahead is how many transactions at most are made before the kernel has the one in
// front: a few MB.
const ahead = 16

// errBefore ends a producer whose earlier transaction failed.
var errBefore = errors.New("an earlier transaction failed")

// pipelined commits what produce emits, in order, in a goroutine of its own: the
// next transactions are made while the kernel works on one. After an error nothing
// more is committed. It returns when all is done.
func pipelined(commit nftables.Emit, produce func(nftables.Emit) error) error {
	txs, failed, result := make(chan *nft.Tx, ahead), make(chan struct{}), make(chan error, 1)
	go func() {
		for tx := range txs {
			if err := commit(tx); err != nil {
				close(failed)
				result <- err
				return
			}
		}
		result <- nil
	}()
	err := produce(func(tx *nft.Tx) error {
		select {
		case <-failed:
			return errBefore
		default:
		}
		select {
		case txs <- tx:
			return nil
		case <-failed:
			return errBefore
		}
	})
	close(txs)
	if failure := <-result; failure != nil {
		return failure
	}
	return err
}
