// Package record holds what travels through a topology beside the user's value:
// where a record came from, and the key-value pair that keyed operators emit.
package record
