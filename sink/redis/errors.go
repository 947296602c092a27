package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"

	goredis "github.com/redis/go-redis/v9"
)

// Errors that Redis answers with. Match them with errors.Is; the text is Redis's own.
var (
	// ErrWrongType: the key holds another type than the command is for.
	ErrWrongType = errors.New("wrong type at a key")
	// ErrRefused: Redis knows no such command, its arguments are wrong, or the value can't
	// be changed like that.
	ErrRefused = errors.New("command refused")
	// ErrNotInScript: the command can't be in a script, so neither in a write-ahead sink nor
	// under a version guard. Of the commands that the sinks know it is found when the record
	// is processed.
	ErrNotInScript = errors.New("command not allowed in a script")
	// ErrMemory: the memory limit is reached, and Redis evicts nothing.
	ErrMemory = errors.New("redis is out of memory")
	// ErrAuth: user or password are missing or wrong.
	ErrAuth = errors.New("authentication failed")
	// ErrTLS: one side does not accept the other's certificate, or the answer is not TLS.
	ErrTLS = errors.New("TLS with Redis failed")
	// ErrPermission: the user may not run the command or touch the key.
	ErrPermission = errors.New("no permission in Redis")
	// ErrReadOnly: the server is a replica.
	ErrReadOnly = errors.New("redis is a read-only replica")
	// ErrPersistence: Redis refuses writes, because it can't save or has too few replicas.
	ErrPersistence = errors.New("redis refuses writes that it can't make durable")
	// ErrUnavailable: Redis can't be reached, is loading, failing over or moving slots; or
	// the outcome is unknown.
	ErrUnavailable = errors.New("redis is unavailable")
)

// serverError is an answer of Redis, or the lack of one, with its class.
type serverError struct {
	kind error
	err  error
	hint string
}

func (e *serverError) Error() string {
	s := fmt.Sprintf("%v: %v", e.kind, e.err)
	if e.hint != "" {
		s += "; " + e.hint
	}
	return s
}

func (e *serverError) Unwrap() []error { return []error{e.kind, e.err} }

// classes says how the text of an answer begins, and what that means. The first that fits
// counts. One word stands for that word: BUSYGROUP is not BUSY.
var classes = []struct {
	prefix string
	kind   error
	hint   string
}{
	{"WRONGTYPE", ErrWrongType, "another writer uses the key, or the topology uses it twice"},
	{"CROSSSLOT", ErrCrossSlot, "give keys that belong together one hash tag"},
	{"ERR Script attempted to access keys that do not hash to the same slot", ErrCrossSlot, "name every key by redis.Key"},
	{"ERR Script attempted to access a non local key", ErrCrossSlot, "name every key by redis.Key"}, // a slot that moves is noticed before the script begins
	{"OOM", ErrMemory, "raise maxmemory or delete keys; nothing is lost meanwhile"},
	{"NOAUTH", ErrAuth, "set Options.Username and Options.Password"},
	{"WRONGPASS", ErrAuth, "check Options.Username and Options.Password"},
	{"ERR AUTH", ErrAuth, "check Options.Username and Options.Password"},
	{"ERR ACL failure", ErrPermission, "see the rights that the sinks need in docs/operations.md"},
	{"ERR The user executing the script can't", ErrPermission, "see the rights that the sinks need in docs/operations.md"}, // Redis 7.0
	{"NOPERM", ErrPermission, "see the rights that the sinks need in docs/operations.md"},
	{"READONLY", ErrReadOnly, "give the address of the primary, or Options.Master to follow it"},
	{"MISCONF", ErrPersistence, "see Redis's log"},
	{"NOREPLICAS", ErrPersistence, "min-replicas-to-write is not met"},
	{"MOVED", ErrUnavailable, "the server is part of a cluster: set Options.Cluster"},
	{"ASK", ErrUnavailable, "a slot moves"},
	{"TRYAGAIN", ErrUnavailable, "a slot moves"},
	{"CLUSTERDOWN", ErrUnavailable, ""},
	{"LOADING", ErrUnavailable, ""},
	{"MASTERDOWN", ErrUnavailable, ""},
	{"UNBLOCKED", ErrUnavailable, ""},
	{"BUSY", ErrUnavailable, "a script runs"},
	{"UNKILLABLE", ErrUnavailable, "a script runs"},
	{"NOSCRIPT", ErrUnavailable, ""},
	{"EXECABORT", ErrUnavailable, ""},
	{"ERR max number of clients reached", ErrUnavailable, ""},
	{"ERR This Redis command is not allowed from script", ErrNotInScript, "Redis runs it outside of scripts only"},
}

// classify gives an error of the client its class. What is no answer of Redis is
// [ErrUnavailable]: the connection failed, and the outcome is unknown.
func classify(err error) error {
	var se *serverError
	switch {
	case err == nil || errors.As(err, &se):
		return err
	case errors.Is(err, context.Canceled):
		return err
	}
	if refusedTLS(err) {
		return &serverError{kind: ErrTLS, err: err, hint: "check Options.TLS: authority, server name and client certificate"}
	}
	var answer goredis.Error
	if !errors.As(err, &answer) || errors.Is(err, goredis.Nil) {
		return &serverError{kind: ErrUnavailable, err: err}
	}
	return classifyText(answer.Error(), err)
}

// refusedTLS tells whether a connection failed because of what TLS says about it.
func refusedTLS(err error) bool {
	var (
		cert   *tls.CertificateVerificationError
		header tls.RecordHeaderError
		op     *net.OpError
	)
	// crypto/tls reports an alert of the other side as such an operation.
	return errors.As(err, &cert) || errors.As(err, &header) || errors.As(err, &op) && op.Op == "remote error"
}

// classifyText classifies an answer, which a script may have passed on.
func classifyText(text string, err error) error {
	if err == nil {
		err = errors.New(text)
	}
	for _, c := range classes {
		if begins(text, c.prefix) {
			return &serverError{kind: c.kind, err: err, hint: c.hint}
		}
	}
	return &serverError{kind: ErrRefused, err: err}
}

// begins tells whether an answer begins with a prefix of classes.
func begins(text, prefix string) bool {
	rest, ok := strings.CutPrefix(text, prefix)
	return ok && (rest == "" || rest[0] == ' ' || strings.Contains(prefix, " "))
}

// blamed tells whether the command itself is at fault, so that others may succeed.
func blamed(err error) bool {
	return errors.Is(err, ErrWrongType) || errors.Is(err, ErrRefused) || errors.Is(err, ErrNotInScript) || errors.Is(err, ErrCrossSlot)
}

// unavailable tells whether Redis may answer otherwise by itself.
func unavailable(err error) bool { return errors.Is(err, ErrUnavailable) }

// timedOut tells whether an answer was waited for in vain.
func timedOut(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

// passing tells whether somebody has to do something, but a failover or an operator may do
// it without a restart of the app.
func passing(err error) bool {
	return errors.Is(err, ErrTLS) || errors.Is(err, ErrMemory) || errors.Is(err, ErrReadOnly) || errors.Is(err, ErrPersistence)
}

// CommandError is the failure of one command. Unwrap leads to its class.
type CommandError struct {
	Sink       string
	Checkpoint int64  // of a write-ahead sink: in whose log it is
	Command    string // with its first argument
	Err        error
}

func (e *CommandError) Error() string {
	if e.Checkpoint != 0 {
		return fmt.Sprintf("sink %q: command %s, which checkpoint %d committed: %v\n  what comes before it is applied, and nothing after it; mend the cause and start again, or use redis.DeadLetters to put such commands aside", e.Sink, e.Command, e.Checkpoint, e.Err)
	}
	return fmt.Sprintf("sink %q: command %s: %v\n  mend the cause and start again, or use redis.DeadLetters to put such commands aside", e.Sink, e.Command, e.Err)
}

func (e *CommandError) Unwrap() error { return e.Err }

// describe is a command for messages: its name and first argument.
func describe(command []byte) string {
	const most = 100
	args, err := commandArgs(command)
	switch {
	case err != nil:
		return err.Error()
	case len(args) < 2:
		return string(args[0])
	}
	return fmt.Sprintf("%s %.*q", args[0], most, args[1])
}
