#!lua flags=allow-oom
-- Hand a running step back to its lane, as a node does that stops before the step is done.
-- KEYS  1 job  2 lane
-- ARGV  1 job id  2 entry  3 attempt  4 step
-- Reply the job's new state; 'stale' when this attempt no longer holds the step (nothing is changed)
-- State running -> queued
local function one(keys, args)
  local known = redis.call('HMGET', keys[1], 'state', 'attempt')
  if known[1] ~= 'running' or known[2] ~= args[3] then return 'stale' end
  redis.call('XACK', keys[2], 'nodes', args[2])
  redis.call('XDEL', keys[2], args[2])
  local entry = redis.call('XADD', keys[2], '*', 'j', args[1], 's', args[4])
  redis.call('HSET', keys[1], 'state', 'queued', 'entry', entry)
  return 'queued'
end
