#!lua flags=allow-oom
-- Record the outcome of a running step, and queue the next step or end the job.
-- KEYS  1 job  2 lane of the step  3 lane of the next step (any lane when there is none)
--       4 live  5 pending of the caller  6 finished of the caller  7 ended
-- ARGV  1 job id  2 entry  3 attempt  4 step  5 container of the step
--       6 'output' (there is a next step), 'last' (there is none) or 'error'  7 the output, JSON, or the error's words
-- Reply the job's new state; 'stale' when this attempt no longer holds the step (nothing is changed)
-- State running -> queued | succeeded | failed
local function one(keys, args)
  local known = redis.call('HMGET', keys[1], 'state', 'attempt', 'created')
  if known[1] ~= 'running' or known[2] ~= args[3] then return 'stale' end
  redis.call('XACK', keys[2], 'nodes', args[2])
  redis.call('XDEL', keys[2], args[2])
  if args[6] == 'output' then
    local step = string.format('%d', args[4] + 1)
    local entry = redis.call('XADD', keys[3], '*', 'j', args[1], 's', step)
    redis.call('HSET', keys[1], 'o' .. args[4], args[7], 'state', 'queued', 'step', step, 'entry', entry)
    redis.call('HDEL', keys[1], 'lost')
    return 'queued'
  end
  local state
  if args[6] == 'last' then
    state = 'succeeded'
    redis.call('HSET', keys[1], 'out', args[7], 'state', state, 'ended', now)
  else
    state = 'failed'
    redis.call('HSET', keys[1], 'error', args[7], 'failed_in', args[5], 'state', state, 'ended', now)
  end
  redis.call('HDEL', keys[1], 'entry')
  redis.call('ZREM', keys[4], args[1])
  redis.call('ZREM', keys[5], args[1])
  redis.call('ZADD', keys[6], known[3], args[1])
  redis.call('ZADD', keys[7], now, args[1])
  return state
end
