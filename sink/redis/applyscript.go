package redis

import (
	"strconv"
	"strings"
)

// applyScript applies a batch if the marker says that it is the next one.
//
//	KEYS[1] marker, KEYS[2] dead letters, KEYS[3] open batches; on a cluster the keys of
//	the batch follow
//	ARGV[1] how the marker must begin, empty if there must be none
//	ARGV[2] how the new marker begins, in front of the number of operations
//	ARGV[3] number of operations applied before this batch
//	ARGV[4] how the new marker ends
//	ARGV[5] "1" to put commands aside that fail
//	ARGV[6] the commands, MessagePack arrays one after another
//
// It returns {0, marker} and did nothing, or {1, put aside}, or {2, applied, error}: that
// many were applied and marked as such, and the next one failed; or {3, batch} and did
// nothing, because that batch is open, see [PartError].
//
// A script is not rolled back, so nothing may fail between the operations and the marker.
// The batch is put on the list of open ones first: what refuses all writes (memory,
// replica, disk) refuses that one, before anything happened, and Redis asks no more once a
// script has written. What a command itself does wrong is caught, and the marker is set to
// exactly what was done. Whether the user may take the batch off the list again, and set the
// marker, is asked before, too; Redis 6 can't be asked.
//
// A command is put aside if its answer is none of [classes] that the command is not to
// blame for. Redis 6 has no code in front of what the script does wrong, such as a right
// that the user lacks, but the name of the script.
//
// Commands are unpacked 32 at a time: with 512 SETs that is a sixth faster than one at a
// time, and more at a time is no faster.
var applyScript = newScript(`
local function own(err)
  for _, begin in ipairs({'@user_script', ` + luaStrings(othersFaults()) + `}) do
    if string.sub(err .. ' ', 1, #begin) == begin then return false end
  end
  return true
end
local marker = redis.call('GET', KEYS[1]) or ''
if marker ~= ARGV[1] and (ARGV[1] == '' or string.sub(marker, 1, #ARGV[1]) ~= ARGV[1]) then
  return {0, marker}
end
local open = redis.call('LINDEX', KEYS[3], 0)
if open then
  return {3, open}
end
if redis.acl_check_cmd and not redis.acl_check_cmd('RPOP', KEYS[3]) then
  return redis.error_reply('NOPERM the script may not run the command rpop')
end
if redis.acl_check_cmd and not redis.acl_check_cmd('SET', KEYS[1], '') then
  return redis.error_reply('NOPERM the script may not run the command set')
end
redis.call('RPUSH', KEYS[3], ARGV[2] .. ARGV[3] .. ' ' .. ARGV[4])
local done = tonumber(ARGV[3])
local at, aside, failed = 0, 0, false
local commands, unpack_limit, call, unpack, type = ARGV[6], cmsgpack.unpack_limit, redis.pcall, unpack, type
while at >= 0 and not failed do
  local some = {unpack_limit(commands, 32, at)}
  at = some[1]
  for i = 2, #some do
    local r = call(unpack(some[i]))
    if type(r) == 'table' and r.err then
      if ARGV[5] ~= '1' or not own(r.err) then
        failed = r.err
        break
      end
      local entry = ARGV[2] .. string.format('%.0f', done) .. ' ' .. ARGV[4] .. '\n' .. r.err .. '\n' .. cmsgpack.pack(some[i])
      r = call('RPUSH', KEYS[2], entry)
      if type(r) == 'table' and r.err then
        failed = r.err
        break
      end
      aside = aside + 1
    end
    done = done + 1
  end
end
redis.call('SET', KEYS[1], ARGV[2] .. string.format('%.0f', done) .. ' ' .. ARGV[4])
redis.call('RPOP', KEYS[3])
if failed then
  return {2, done - tonumber(ARGV[3]), failed}
end
return {1, aside}
`)

// othersFaults lists how answers begin that no command is to blame for. With the space
// behind it one word is that word.
func othersFaults() []string {
	var begins []string
	for _, c := range classes {
		switch {
		case blamed(c.kind):
		case strings.Contains(c.prefix, " "):
			begins = append(begins, c.prefix)
		default:
			begins = append(begins, c.prefix+" ")
		}
	}
	return begins
}

// luaStrings writes texts as a list in Lua.
func luaStrings(texts []string) string {
	var quoted []string
	for _, s := range texts {
		quoted = append(quoted, strconv.Quote(s))
	}
	return strings.Join(quoted, ", ")
}
