package redis

import (
	"context"
	"errors"
	"strings"

	goredis "github.com/redis/go-redis/v9"
)

// guardScript does a command unless one was done on its key under a higher version.
//
//	KEYS[1] version; the keys of the command follow
//	ARGV[1] version, as text of a fixed length that sorts like the number
//	ARGV[2] how long the version is kept, ms
//	ARGV[3] the command, a MessagePack array
//
// It returns 1 if the command was done, 0 if not. The version follows the command: what
// refuses the command leaves the version as it is.
var guardScript = newScript(`
local version = redis.call('GET', KEYS[1])
if version and version > ARGV[1] then
  return 0
end
local r = redis.pcall(unpack(cmsgpack.unpack(ARGV[3])))
if type(r) == 'table' and r.err then
  return redis.error_reply(r.err)
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
`)

// script is a Lua script and its name in Redis's cache.
type script struct{ text, sha string }

func newScript(text string) script {
	text = strings.TrimSpace(text)
	return script{text, goredis.NewScript(text).Hash()}
}

// loadScript puts a script into the cache of every server that takes writes. Redis forgets
// scripts at a restart, a failover or SCRIPT FLUSH.
func loadScript(ctx context.Context, cl goredis.UniversalClient, s script) error {
	return eachServer(ctx, cl, func(ctx context.Context, c *goredis.Client) error {
		return classify(c.ScriptLoad(ctx, s.text).Err())
	})
}

// noScript tells whether Redis has forgotten the script.
func noScript(err error) bool { return goredis.HasErrorPrefix(err, "NOSCRIPT") }

// execute sends commands in one pipeline and returns how each was answered, nil for a
// reply.
//
// A command counts as answered only if it has a reply. If the connection fails before
// anything was sent, at its authentication for example, the client leaves commands without
// an error.
func execute(ctx context.Context, cl goredis.UniversalClient, cmds []*goredis.Cmd) []error {
	pipe := cl.Pipeline()
	for _, c := range cmds {
		_ = pipe.Process(ctx, c) // queues it
	}
	_, failed := pipe.Exec(ctx)
	answers := make([]error, len(cmds))
	for i, c := range cmds {
		switch err := c.Err(); {
		case errors.Is(err, goredis.Nil):
		case err != nil:
			answers[i] = err
		case c.Val() == nil && failed != nil:
			answers[i] = failed
		case c.Val() == nil:
			answers[i] = errNoAnswer
		}
	}
	return answers
}

var errNoAnswer = errors.New("no answer")
