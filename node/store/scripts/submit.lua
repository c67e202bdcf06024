-- Accept a job: record it, index it, and queue its first step.
-- KEYS  1 job
-- ARGV  1 job id  2 caller  3 containers, JSON list  4 data, JSON  5 requires_proof "1" or ""  6 first container
--       7 most entries of its lane; of it with its bulk queue for a step of that  8 seconds until the janitor looks at it
--       9 queue timeout or ""  10 total timeout or "", seconds  11 key of the request's record, or ""
-- Shared 1 most live jobs of a caller  2 live jobs of a caller from which on its steps go to the bulk queue
--       3 how long the record of a request is kept, seconds
-- Reply 1; or the id of the job that the record names; or 'lane full', 'caller full' (nothing is changed)
-- State (none) -> queued
--
-- Fields of a job: caller, containers, data, proof, created; queue_s, total_s (its own timeouts); state; step (index of
-- the current one), entry (its entry in the lane, after a "b" that in the bulk queue, or ''; the time in its id is when
-- the step was queued), attempt (fencing token), lost (how often the step's worker died), node (who runs it); o<i> (output
-- of step i), out (output of the last step), large ('1' when one of them is), error, failed_in (its container), ended;
-- retry_of, retried_as (ids).

-- How many members or entries a key has, with those that this call adds.
local counts = {}
local function counted(command, key)
  counts[key] = counts[key] or redis.call(command, key)
  return counts[key]
end

local function one(keys, args, shared)
  local earlier = args[11] ~= '' and redis.call('GET', args[11])
  if earlier then return earlier end
  if redis.call('EXISTS', keys[1]) == 1 then return args[1] end
  local pending, lane, bulk = PREFIX .. 'pending:' .. args[2], lane_key(args[6]), bulk_key(args[6])
  local live = counted('ZCARD', pending)
  if live >= tonumber(shared[1]) then return 'caller full' end
  local like = live >= tonumber(shared[2]) and 'b' or ''
  if counted('XLEN', lane) + (like == 'b' and counted('XLEN', bulk) or 0) >= tonumber(args[7]) then return 'lane full' end
  local entry = enqueue(args[1], args[6], '0', like, #args[4])
  redis.call('HSET', keys[1], 'caller', args[2], 'containers', args[3], 'data', args[4], 'proof', args[5],
    'created', now, 'state', 'queued', 'step', '0', 'attempt', '0', 'entry', entry)
  if args[9] ~= '' then redis.call('HSET', keys[1], 'queue_s', args[9]) end
  if args[10] ~= '' then redis.call('HSET', keys[1], 'total_s', args[10]) end
  later('ZADD', LIVE, now + args[8], args[1])
  later('ZADD', pending, now, args[1])
  if args[11] ~= '' then redis.call('SET', args[11], args[1], 'EX', shared[3]) end
  counts[pending] = live + 1
  local stream = like == 'b' and bulk or lane
  counts[stream] = counted('XLEN', stream) + 1
  return 1
end
