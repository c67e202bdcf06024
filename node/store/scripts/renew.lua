#!lua flags=allow-oom
-- Prolong the lease of a running step: its entry counts as fresh again.
-- KEYS  1 job
-- ARGV  1 consumer  2 job id  3 attempt  4 step  5 container
-- Reply 1; 0 when this attempt no longer holds the step
-- State unchanged
local function one(keys, args)
  local known = redis.pcall('HMGET', keys[1], 'state', 'attempt', 'entry')
  if known[1] ~= 'running' or known[2] ~= args[3] then return 0 end
  hold(args[2], args[5], args[4], known[3] or nil, args[1])
  return 1
end
