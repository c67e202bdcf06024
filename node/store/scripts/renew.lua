#!lua flags=allow-oom
-- Prolong the lease of a running step: its entry counts as fresh again.
-- KEYS  1 job  2 lane
-- ARGV  1 consumer  2 entry  3 attempt
-- Reply 1; 0 when this attempt no longer holds the step
-- State unchanged
local function one(keys, args)
  local known = redis.call('HMGET', keys[1], 'state', 'attempt')
  if known[1] ~= 'running' or known[2] ~= args[3] then return 0 end
  redis.call('XCLAIM', keys[2], 'nodes', args[1], '0', args[2], 'JUSTID')
  return 1
end
