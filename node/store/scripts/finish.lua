#!lua flags=allow-oom
-- Record the output of a running step, and queue the next step or end the job.
-- KEYS  1 job
-- ARGV  1 job id  2 caller  3 attempt  4 step  5 container of the step  6 container of the next step, or ''  7 output, JSON
-- Reply the job's new state; 'stale' when this attempt no longer holds the step (nothing is changed)
-- State running -> queued | succeeded
local function one(keys, args)
  local known = redis.call('HMGET', keys[1], 'state', 'attempt', 'entry', 'created', 'lost')
  if known[1] ~= 'running' or known[2] ~= args[3] then return 'stale' end
  dequeue(args[5], known[3])
  if args[6] == '' then
    conclude(args[1], 'succeeded', args[2], known[4], last_output(keys[1], args[7]), args[7])
    return 'succeeded'
  end
  if #args[7] > LARGE then redis.call('HSET', keys[1], 'large', '1') end
  local step = string.format('%d', args[4] + 1)
  local entry = enqueue(args[1], args[6], step, known[3], #args[7])
  redis.call('HSET', keys[1], 'o' .. args[4], args[7], 'state', 'queued', 'step', step, 'entry', entry)
  if known[5] then redis.call('HDEL', keys[1], 'lost') end
  return 'queued'
end
