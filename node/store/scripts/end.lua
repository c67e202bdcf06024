#!lua flags=allow-oom
-- End a job from outside its chain: a cancel, a reported status, a stream's end, a node's start after a crash.
-- KEYS  1 job  2 live  3 ended  4 stopped, the channel on which whoever runs a step of the job is told
-- ARGV  1 job id  2 state  3 error, or ''  4 container that failed, or ''  5 output, JSON, or ''  6 key prefix of the store
--       7 '' when whoever runs it ends it
-- Reply the state that the job had before; '' when it is not known
-- State queued | running -> succeeded | failed | cancelled; a terminal state is left as it is
local function one(keys, args)
  local known = redis.call('HMGET', keys[1], 'state', 'caller', 'created', 'containers', 'step', 'entry', 'node')
  local state = known[1]
  if not state then
    redis.call('ZREM', keys[2], args[1])
    return ''
  end
  if state ~= 'queued' and state ~= 'running' then return state end
  if known[7] then redis.call('SREM', args[6] .. 'streams:' .. known[7], args[1]) end
  if known[6] then
    local lane = args[6] .. 'lane:' .. cjson.decode(known[4])[known[5] + 1]
    redis.pcall('XACK', lane, 'nodes', known[6])
    redis.call('XDEL', lane, known[6])
    redis.call('HDEL', keys[1], 'entry')
  end
  redis.call('HSET', keys[1], 'state', args[2], 'ended', now)
  if args[3] ~= '' then redis.call('HSET', keys[1], 'error', args[3], 'failed_in', args[4]) end
  if args[5] ~= '' then redis.call('HSET', keys[1], 'out', args[5]) end
  redis.call('ZREM', keys[2], args[1])
  redis.call('ZREM', args[6] .. 'pending:' .. known[2], args[1])
  redis.call('ZADD', args[6] .. 'finished:' .. known[2], known[3], args[1])
  redis.call('ZADD', keys[3], now, args[1])
  if state == 'running' and args[7] ~= '' then redis.call('PUBLISH', keys[4], args[1]) end
  return state
end
