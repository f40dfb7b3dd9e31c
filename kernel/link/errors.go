package link

import "errors"

// Errors that callers may have to tell apart.
var (
	// ErrNameInUse is a link of the wanted name that podlane did not make.
	ErrNameInUse = errors.New("name already in use")
	// ErrRouteInUse is a route to the wanted destination that podlane did not make.
	ErrRouteInUse = errors.New("a route of someone else is in the way")
	// ErrNoFeature is a kind of link that the kernel does not have.
	ErrNoFeature = errors.New("missing kernel feature")
)
