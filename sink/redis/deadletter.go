package redis

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// DeadLetter is a command that was put aside because it failed; see [DeadLetters].
type DeadLetter struct {
	// Checkpoint and Operation tell which operation it was, of a write-ahead sink:
	// Operation counts from 0 within the checkpoint's log, on a cluster within the slot.
	Checkpoint, Operation int64
	Sink                  string
	At                    time.Time
	Err                   string   // Redis's answer
	Command               []string // name and arguments
}

// ParseDeadLetter parses an element of a list of dead letters: a line that says where it comes from, a
// line with Redis's answer, and the command as a MessagePack array of strings.
func ParseDeadLetter(element string) (DeadLetter, error) {
	head, rest, ok := strings.Cut(element, "\n")
	if !ok {
		return DeadLetter{}, errors.New("no dead letter of a Redis sink: it has one line")
	}
	m, ok := parseStamp(head)
	if !ok {
		return DeadLetter{}, fmt.Errorf("no dead letter of a Redis sink: it begins with %.100q", head)
	}
	text, command, ok := strings.Cut(rest, "\n")
	if !ok {
		return DeadLetter{}, errors.New("no dead letter of a Redis sink: it has two lines")
	}
	args, err := commandArgs([]byte(command))
	if err != nil {
		return DeadLetter{}, fmt.Errorf("no dead letter of a Redis sink: %w", err)
	}
	d := DeadLetter{Checkpoint: m.checkpoint, Operation: m.operations, Sink: m.sink, At: m.at, Err: text}
	for _, a := range args {
		d.Command = append(d.Command, string(a))
	}
	return d, nil
}
