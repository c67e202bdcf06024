-- Record a job that is in no lane: one that a door runs itself (a stream), or whose state somebody else reports.
-- KEYS  1 job
-- ARGV  1 job id  2 caller  3 containers, JSON list  4 data, JSON or ""  5 state: running, succeeded or failed
--       6 node that runs it, or ""  7 error, or ""  8 seconds until the janitor looks at it first
-- Reply 1; 0 when the id is known already (nothing is changed)
-- State (none) -> the given one
local function one(keys, args)
  if redis.call('EXISTS', keys[1]) == 1 then return 0 end
  redis.call('HSET', keys[1], 'caller', args[2], 'containers', args[3], 'data', args[4], 'proof', '', 'created', now,
    'state', args[5], 'step', '0', 'attempt', '1', 'node', args[6])
  if args[5] ~= 'running' then
    conclude(args[1], args[5], args[2], now, unpack(args[7] ~= '' and { 'error', args[7] } or {}))
    return 1
  end
  redis.call('ZADD', PREFIX .. 'live', now + args[8], args[1])
  redis.call('ZADD', PREFIX .. 'pending:' .. args[2], now, args[1])
  if args[6] ~= '' then redis.call('SADD', PREFIX .. 'streams:' .. args[6], args[1]) end
  return 1
end
