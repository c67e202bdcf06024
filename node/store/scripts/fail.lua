#!lua flags=allow-oom
-- End a job whose running step ended in an error.
-- KEYS  1 job
-- ARGV  1 job id  2 caller  3 attempt  4 container of the step  5 the error's words
-- Reply as in finish.lua
-- State running -> failed
local function one(keys, args)
  local known = redis.call('HMGET', keys[1], 'state', 'attempt', 'entry', 'created')
  if known[1] ~= 'running' or known[2] ~= args[3] then return 'stale' end
  dequeue(args[4], known[3])
  conclude(args[1], 'failed', args[2], known[4], 'error', args[5], 'failed_in', args[4])
  return 'failed'
end
