package apply

import (
	"testing"

	"github.com/podlane/podlane/internal/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }
