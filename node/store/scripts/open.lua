-- Record a job that is in no lane: one that a door runs itself (a stream), or whose state somebody else reports.
-- KEYS  1 job  2 live  3 pending of the caller  4 finished of the caller  5 ended  6 streams of the node
-- ARGV  1 job id  2 caller  3 containers, JSON list  4 data, JSON or ""  5 state: running, succeeded or failed
--       6 node that runs it, or ""  7 error, or ""
-- Reply 1; 0 when the id is known already (nothing is changed)
-- State (none) -> the given one
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
redis.call('HSET', KEYS[1], 'caller', ARGV[2], 'containers', ARGV[3], 'data', ARGV[4], 'proof', '', 'created', now,
  'state', ARGV[5], 'step', '0', 'attempt', '1', 'node', ARGV[6])
if ARGV[5] == 'running' then
  redis.call('ZADD', KEYS[2], now, ARGV[1])
  redis.call('ZADD', KEYS[3], now, ARGV[1])
  if ARGV[6] ~= '' then redis.call('SADD', KEYS[6], ARGV[1]) end
else
  redis.call('HSET', KEYS[1], 'ended', now)
  if ARGV[7] ~= '' then redis.call('HSET', KEYS[1], 'error', ARGV[7]) end
  redis.call('ZADD', KEYS[4], now, ARGV[1])
  redis.call('ZADD', KEYS[5], now, ARGV[1])
end
return 1
