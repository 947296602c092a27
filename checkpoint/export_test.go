package checkpoint

// Settle waits until the writer has no background work left.
func (w *Writer) Settle() { w.settle() }

var (
	DecodeManifest = decodeManifest
	ManifestObject = manifestObject
	PickMerge      = pickMerge
)

const TempAge = tempAge
