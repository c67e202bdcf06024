#!lua flags=allow-oom
-- End a job from outside its chain: a cancel, a reported status, a stream's end, a node's start after a crash.
-- KEYS  1 job  2 live  3 ended
-- ARGV  1 job id  2 state  3 error, or ''  4 container that failed, or ''  5 output, JSON, or ''  6 key prefix of the store
-- Reply the state that the job had before; '' when it is not known
-- State queued | running -> succeeded | failed | cancelled; a terminal state is left as it is
local known = redis.call('HMGET', KEYS[1], 'state', 'caller', 'created', 'containers', 'step', 'entry', 'node')
local state = known[1]
if not state then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return ''
end
if state ~= 'queued' and state ~= 'running' then return state end
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
if known[7] then redis.call('SREM', ARGV[6] .. 'streams:' .. known[7], ARGV[1]) end
if known[6] then
  local lane = ARGV[6] .. 'lane:' .. cjson.decode(known[4])[known[5] + 1]
  redis.pcall('XACK', lane, 'nodes', known[6])
  redis.call('XDEL', lane, known[6])
  redis.call('HDEL', KEYS[1], 'entry')
end
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'ended', now)
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'error', ARGV[3], 'failed_in', ARGV[4]) end
if ARGV[5] ~= '' then redis.call('HSET', KEYS[1], 'out', ARGV[5]) end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', ARGV[6] .. 'pending:' .. known[2], ARGV[1])
redis.call('ZADD', ARGV[6] .. 'finished:' .. known[2], known[3], ARGV[1])
redis.call('ZADD', KEYS[3], now, ARGV[1])
return state
