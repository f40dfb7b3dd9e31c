// Package purity holds the tests of the repository's own rules: which packages
// may touch the world, and that each says what it is. It has no code.
package purity
