-- Accept a job: record it, index it, and queue its first step.
-- KEYS  1 job  2 lane of the first container  3 live  4 pending of the caller
-- ARGV  1 job id  2 caller  3 containers, JSON list  4 data, JSON  5 requires_proof "1" or ""
-- Reply 1; 0 when the id is known already (nothing is changed)
-- State (none) -> queued
--
-- Fields of a job: caller, containers, data, proof, created; state; step (index of the current one), entry (its entry in
-- the lane), attempt (fencing token), lost (how often the step's worker died), node (who runs it);
-- o<i> (output of step i), out (output of the last step), error, failed_in (its container), ended.
local function one(keys, args)
  if redis.call('EXISTS', keys[1]) == 1 then return 0 end
  local entry = redis.call('XADD', keys[2], '*', 'j', args[1], 's', '0')
  redis.call('HSET', keys[1], 'caller', args[2], 'containers', args[3], 'data', args[4], 'proof', args[5],
    'created', now, 'state', 'queued', 'step', '0', 'attempt', '0', 'entry', entry)
  redis.call('ZADD', keys[3], now, args[1])
  redis.call('ZADD', keys[4], now, args[1])
  return 1
end
