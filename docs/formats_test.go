package docs_test

import (
	"fmt"

	"github.com/weirstream/weir/offsets"
)

func Example_pointer() {
	p, err := offsets.ParsePointer("weir1|wordcount|host-a|4711|90211|a1b2c3d4|000102030405060708090a0b0c0d0e0f|9dd83916")
	fmt.Println(p.App, p.Instance, p.Offset, p.Manifest.Checkpoint, p.Manifest.Object(), err)
	// Output: wordcount host-a 90211 4711 0000000000001267-a1b2c3d4 <nil>
}
