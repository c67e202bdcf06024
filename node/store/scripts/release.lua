#!lua flags=allow-oom
-- Hand a running step back to its lane, as a node does that stops before the step is done.
-- KEYS  1 job
-- ARGV  1 job id  2 attempt  3 step  4 container
-- Reply the job's new state; 'stale' when this attempt no longer holds the step (nothing is changed)
-- State running -> queued
local function one(keys, args)
  local known = redis.call('HMGET', keys[1], 'state', 'attempt', 'entry')
  if known[1] ~= 'running' or known[2] ~= args[2] then return 'stale' end
  dequeue(args[4], known[3])
  redis.call('HSET', keys[1], 'state', 'queued', 'entry', enqueue(args[1], args[4], args[3], known[3]))
  return 'queued'
end
