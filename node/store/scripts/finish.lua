#!lua flags=allow-oom
-- Record the outcome of a running step, and queue the next step or end the job.
-- KEYS  1 job  2 lane of the step  3 lane of the next step (any lane when there is none)
--       4 live  5 pending of the caller  6 finished of the caller  7 ended
-- ARGV  1 job id  2 entry  3 attempt  4 step  5 container of the step
--       6 'output' (there is a next step), 'last' (there is none) or 'error'  7 the output, JSON, or the error's words
-- Reply the job's new state; 'stale' when this attempt no longer holds the step (nothing is changed)
-- State running -> queued | succeeded | failed
local known = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'created')
if known[1] ~= 'running' or known[2] ~= ARGV[3] then return 'stale' end
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
redis.call('XACK', KEYS[2], 'nodes', ARGV[2])
redis.call('XDEL', KEYS[2], ARGV[2])
if ARGV[6] == 'output' then
  local step = string.format('%d', ARGV[4] + 1)
  local entry = redis.call('XADD', KEYS[3], '*', 'j', ARGV[1], 's', step)
  redis.call('HSET', KEYS[1], 'o' .. ARGV[4], ARGV[7], 'state', 'queued', 'step', step, 'entry', entry)
  redis.call('HDEL', KEYS[1], 'lost')
  return 'queued'
end
local state
if ARGV[6] == 'last' then
  state = 'succeeded'
  redis.call('HSET', KEYS[1], 'out', ARGV[7], 'state', state, 'ended', now)
else
  state = 'failed'
  redis.call('HSET', KEYS[1], 'error', ARGV[7], 'failed_in', ARGV[5], 'state', state, 'ended', now)
end
redis.call('HDEL', KEYS[1], 'entry')
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('ZREM', KEYS[5], ARGV[1])
redis.call('ZADD', KEYS[6], known[3], ARGV[1])
redis.call('ZADD', KEYS[7], now, ARGV[1])
return state
