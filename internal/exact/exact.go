// Package exact marks the codecs of package codec that are known to give back every key as
// it was, so that the state backends need not try. Nobody else can claim that.
package exact

// Marker marks the codec that embeds it: what it decodes is == to what it encoded.
type Marker struct{}

func (Marker) exact() {}

// Is tells whether a codec is marked.
func Is(codec any) bool {
	_, ok := codec.(interface{ exact() })
	return ok
}
