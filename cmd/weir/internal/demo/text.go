package demo

import (
	_ "embed"
	"math/rand/v2"
	"strings"
)

//go:embed words.txt
var wordList string

// The shape of the text: a word's frequency falls with about its rank to the power
// of zipfExponent, as in a language.
const (
	zipfExponent = 1.1
	zipfOffset   = 3

	minLineWords = 3
	maxLineWords = 9
)

// text is an endless text. The same seed makes the same text.
type text struct {
	words []string
	rng   *rand.Rand
	zipf  *rand.Zipf
}

func newText(seed uint64) *text {
	words := strings.Fields(wordList)
	rng := rand.New(rand.NewPCG(seed, 0))
	return &text{words, rng, rand.NewZipf(rng, zipfExponent, zipfOffset, uint64(len(words)-1))}
}

// line returns the next line.
func (t *text) line() string {
	var b strings.Builder
	for i := range minLineWords + t.rng.IntN(maxLineWords-minLineWords+1) {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(t.words[t.zipf.Uint64()])
	}
	return b.String()
}

// count returns how often each word is in the first n lines of the text. It looks at
// single bytes, so that it shares nothing with the word count that it judges.
func count(seed uint64, n int) map[string]int64 {
	t := newText(seed)
	counts := map[string]int64{}
	for range n {
		line := t.line() + " "
		begin := 0
		for i := range len(line) {
			if line[i] == ' ' {
				counts[line[begin:i]]++
				begin = i + 1
			}
		}
	}
	return counts
}
