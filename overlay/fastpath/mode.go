package fastpath

import "fmt"

// Mode says whether a node has a fast path.
type Mode string

// The modes.
const (
	Auto Mode = "auto" // where the kernel has what it takes
	On   Mode = "on"   // an error where it has not
	Off  Mode = "off"
)

// Default is the mode where none is given.
const Default = Auto

// ParseMode reads a Mode; "" is Default.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case "":
		return Default, nil
	case Auto, On, Off:
		return m, nil
	}
	return "", fmt.Errorf("%q: want auto, on or off", s)
}
