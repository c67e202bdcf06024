-- Accept a job: record it, index it, and queue its first step.
-- KEYS  1 job  2 lane of the first container  3 its bulk queue  4 record of the request, or the job again without a name
-- ARGV  1 job id  2 caller  3 containers, JSON list  4 data, JSON  5 requires_proof "1" or ""
--       6 most entries of the lane, and of it with its bulk queue for a step of that  7 most live jobs of the caller  8 seconds until the janitor looks at it first
--       9 queue timeout or ""  10 total timeout or "", seconds  11 how long the record is kept, seconds, or ""
--       12 live jobs of the caller from which on its steps go to the bulk queue
-- Reply 1; or the id of the job that the record names; or 'lane full', 'caller full' (nothing is changed)
-- State (none) -> queued
--
-- Fields of a job: caller, containers, data, proof, created; queue_s, total_s (its own timeouts); state; step (index of
-- the current one), entry (its entry in the lane, after a "b" that in the bulk queue; the time in its id is when the step
-- was queued), attempt (fencing token), lost (how often the step's worker died), node (who runs it); o<i> (output of step i), out (output of the last
-- step), error, failed_in (its container), ended; retry_of, retried_as (ids).
local function one(keys, args)
  local earlier = args[11] ~= '' and redis.call('GET', keys[4])
  if earlier then return earlier end
  if redis.call('EXISTS', keys[1]) == 1 then return args[1] end
  local pending = PREFIX .. 'pending:' .. args[2]
  local live = redis.call('ZCARD', pending)
  if live >= tonumber(args[7]) then return 'caller full' end
  local bulk = live >= tonumber(args[12])
  local waiting = redis.call('XLEN', keys[2]) + (bulk and redis.call('XLEN', keys[3]) or 0)
  if waiting >= tonumber(args[6]) then return 'lane full' end
  local entry = redis.call('XADD', bulk and keys[3] or keys[2], '*', 'j', args[1], 's', '0')
  if bulk then entry = 'b' .. entry end
  redis.call('HSET', keys[1], 'caller', args[2], 'containers', args[3], 'data', args[4], 'proof', args[5],
    'created', now, 'state', 'queued', 'step', '0', 'attempt', '0', 'entry', entry)
  if args[9] ~= '' then redis.call('HSET', keys[1], 'queue_s', args[9]) end
  if args[10] ~= '' then redis.call('HSET', keys[1], 'total_s', args[10]) end
  redis.call('ZADD', PREFIX .. 'live', now + args[8], args[1])
  redis.call('ZADD', pending, now, args[1])
  if args[11] ~= '' then redis.call('SET', keys[4], args[1], 'EX', args[11]) end
  return 1
end
