-- Accept a job: record it, index it, and queue its first step.
-- KEYS  1 job  2 lane of the first container  3 live  4 pending of the caller
-- ARGV  1 job id  2 caller  3 containers, JSON list  4 data, JSON  5 requires_proof "1" or ""
-- Reply 1; 0 when the id is known already (nothing is changed)
-- State (none) -> queued
--
-- Fields of a job: caller, containers, data, proof, created; state; step (index of the current one), entry (its entry in
-- the lane), attempt (fencing token), lost (how often the step's worker died), node (who runs it);
-- o<i> (output of step i), out (output of the last step), error, failed_in (its container), ended.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
local entry = redis.call('XADD', KEYS[2], '*', 'j', ARGV[1], 's', '0')
redis.call('HSET', KEYS[1], 'caller', ARGV[2], 'containers', ARGV[3], 'data', ARGV[4], 'proof', ARGV[5],
  'created', now, 'state', 'queued', 'step', '0', 'attempt', '0', 'entry', entry)
redis.call('ZADD', KEYS[3], now, ARGV[1])
redis.call('ZADD', KEYS[4], now, ARGV[1])
return 1
