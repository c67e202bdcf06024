#!lua flags=allow-oom
-- Prolong the lease of a running step: its entry counts as fresh again.
-- KEYS  1 job  2 lane
-- ARGV  1 consumer  2 entry  3 attempt
-- Reply 1; 0 when this attempt no longer holds the step
-- State unchanged
local known = redis.call('HMGET', KEYS[1], 'state', 'attempt')
if known[1] ~= 'running' or known[2] ~= ARGV[3] then return 0 end
redis.call('XCLAIM', KEYS[2], 'nodes', ARGV[1], '0', ARGV[2], 'JUSTID')
return 1
