// Package accept reads the environment variables by which somebody takes a receiver as it
// is: OPERATOR@CHECKPOINT, several separated by commas. Such a word counts for one
// checkpoint only, so it has no effect when it is left set.
package accept

import (
	"os"
	"strconv"
	"strings"
)

// Given tells whether the variable names the operator at the checkpoint.
func Given(variable, operator string, checkpoint int64) bool {
	want := operator + "@" + strconv.FormatInt(checkpoint, 10)
	for w := range strings.SplitSeq(os.Getenv(variable), ",") {
		if strings.TrimSpace(w) == want {
			return true
		}
	}
	return false
}
