package main

import (
	"strings"
	"testing"
)

func TestWhatCannotBeMeasuredIsRefused(t *testing.T) {
	for args, want := range map[string]string{
		"copy extra":        `"extra" is no flag`,
		"count -records 0":  "-records 0: want at least 1",
		"copy -records -5":  "-records -5: want at least 1",
		"redis -rounds 0":   "-rounds 0: want at least 1",
		"barrier -interval": "interval",
		"nonsense":          "go run ./bench list",
	} {
		if err := run(t.Context(), strings.Fields(args)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("bench %s: %v, want %q", args, err, want)
		}
	}
}
