-- Accept a job: record it, index it, and queue its first step.
-- KEYS  1 job
-- ARGV  1 job id  2 caller  3 containers, JSON list  4 data, JSON  5 first container  6 most entries of its lane; of it
--       with its bulk queue for a step of that  7 what few jobs have, JSON object, or "": proof (true: asked for),
--       queue_s, total_s (its own timeouts, seconds), once (key of the request's record)
-- Shared 1 most live jobs of a caller  2 live jobs of a caller from which on its steps go to the bulk queue
--       3 how long the record of a request is kept, seconds  4 seconds until the janitor looks at a job at the latest
-- Reply 1; or the id of the job that the record names; or 'lane full', 'caller full' (nothing is changed)
-- State (none) -> queued
--
-- Fields of a job: caller, containers, data, proof, created; queue_s, total_s (its own timeouts); state; step (index of
-- the current one), entry (its latest entry in a lane, after a "b" that in a bulk queue; the time in its id is when the step
-- was queued), attempt (fencing token), lost (how often the step's worker died), node (who runs it); o<i> (output of step
-- i), out or, when it is large, big (output of the last step), large ('1' when one of them is), error, failed_in (its
-- container), ended; retry_of, retried_as (ids).

-- How many members or entries a key has, with those that this call adds.
local counts = {}
local function counted(command, key)
  counts[key] = counts[key] or redis.call(command, key)
  return counts[key]
end

local function one(keys, args, shared)
  local more = args[7] ~= '' and cjson.decode(args[7]) or {}
  local earlier = more.once and redis.call('GET', more.once)
  if earlier then return earlier end
  if redis.call('EXISTS', keys[1]) == 1 then return args[1] end
  local pending, lane, bulk = PREFIX .. 'pending:' .. args[2], lane_key(args[5]), bulk_key(args[5])
  local live = counted('ZCARD', pending)
  if live >= tonumber(shared[1]) then return 'caller full' end
  local like = live >= tonumber(shared[2]) and 'b' or ''
  if counted('XLEN', lane) + (like == 'b' and counted('XLEN', bulk) or 0) >= tonumber(args[6]) then return 'lane full' end
  local entry = enqueue(args[1], args[5], '0', like, #args[4])
  redis.call('HSET', keys[1], 'caller', args[2], 'containers', args[3], 'data', args[4], 'created', now,
    'state', 'queued', 'step', '0', 'attempt', '0', 'entry', entry)
  if more.proof then redis.call('HSET', keys[1], 'proof', '1') end
  if more.queue_s then redis.call('HSET', keys[1], 'queue_s', more.queue_s) end
  if more.total_s then redis.call('HSET', keys[1], 'total_s', more.total_s) end
  if more.once then redis.call('SET', more.once, args[1], 'EX', shared[3]) end
  later('ZADD', LIVE, now + math.min(shared[4], more.queue_s or shared[4], more.total_s or shared[4]), args[1])
  later('ZADD', pending, now, args[1])
  counts[pending] = live + 1
  local stream = like == 'b' and bulk or lane
  counts[stream] = counted('XLEN', stream) + 1
  return 1
end
