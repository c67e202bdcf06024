#!lua flags=allow-oom
-- Hand a running step back to its lane, as a node does that stops before the step is done.
-- KEYS  1 job  2 lane
-- ARGV  1 job id  2 entry  3 attempt  4 step
-- Reply the job's new state; 'stale' when this attempt no longer holds the step (nothing is changed)
-- State running -> queued
local known = redis.call('HMGET', KEYS[1], 'state', 'attempt')
if known[1] ~= 'running' or known[2] ~= ARGV[3] then return 'stale' end
redis.call('XACK', KEYS[2], 'nodes', ARGV[2])
redis.call('XDEL', KEYS[2], ARGV[2])
local entry = redis.call('XADD', KEYS[2], '*', 'j', ARGV[1], 's', ARGV[4])
redis.call('HSET', KEYS[1], 'state', 'queued', 'entry', entry)
return 'queued'
