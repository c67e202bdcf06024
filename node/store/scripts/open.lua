-- Record a job that is in no lane: one that a door runs itself (a stream), or whose state somebody else reports.
-- KEYS  1 job  2 live  3 pending of the caller  4 finished of the caller  5 ended  6 streams of the node
-- ARGV  1 job id  2 caller  3 containers, JSON list  4 data, JSON or ""  5 state: running, succeeded or failed
--       6 node that runs it, or ""  7 error, or ""
-- Reply 1; 0 when the id is known already (nothing is changed)
-- State (none) -> the given one
local function one(keys, args)
  if redis.call('EXISTS', keys[1]) == 1 then return 0 end
  redis.call('HSET', keys[1], 'caller', args[2], 'containers', args[3], 'data', args[4], 'proof', '', 'created', now,
    'state', args[5], 'step', '0', 'attempt', '1', 'node', args[6])
  if args[5] == 'running' then
    redis.call('ZADD', keys[2], now, args[1])
    redis.call('ZADD', keys[3], now, args[1])
    if args[6] ~= '' then redis.call('SADD', keys[6], args[1]) end
  else
    redis.call('HSET', keys[1], 'ended', now)
    if args[7] ~= '' then redis.call('HSET', keys[1], 'error', args[7]) end
    redis.call('ZADD', keys[4], now, args[1])
    redis.call('ZADD', keys[5], now, args[1])
  end
  return 1
end
