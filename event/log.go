package event

import (
	"fmt"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Log returns a listener that writes one line for each notable event to l. What
// repeats at every checkpoint is written at debug level, what changes hands at
// info, what failed at warn.
func Log(l *zap.Logger) Listener {
	return Listener{
		CheckpointBegun:     line[CheckpointBegun](l, zapcore.DebugLevel),
		CheckpointPersisted: line[CheckpointPersisted](l, zapcore.DebugLevel),
		CheckpointCommitted: line[CheckpointCommitted](l, zapcore.DebugLevel),
		CheckpointFailed:    line[CheckpointFailed](l, zapcore.WarnLevel),
		Restored:            line[Restored](l, zapcore.InfoLevel),
		Restarting:          line[Restarting](l, zapcore.WarnLevel),
		Rebalanced:          line[Rebalanced](l, zapcore.InfoLevel),
		Fenced:              line[Fenced](l, zapcore.WarnLevel),
		DeadLettered:        line[DeadLettered](l, zapcore.WarnLevel),
		Skipped:             line[Skipped](l, zapcore.WarnLevel),
		Collected:           line[Collected](l, zapcore.DebugLevel),
		Merged:              line[Merged](l, zapcore.DebugLevel),
		StateCopied:         line[StateCopied](l, zapcore.DebugLevel),
		Followed:            line[Followed](l, zapcore.DebugLevel),
		Applied:             line[Applied](l, zapcore.DebugLevel),
	}
}

// line formats an event only when its level is enabled.
func line[I fmt.Stringer](l *zap.Logger, level zapcore.Level) func(I) {
	return func(i I) {
		if !l.Core().Enabled(level) {
			return
		}
		l.Log(level, i.String())
	}
}
