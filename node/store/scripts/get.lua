#!lua flags=no-writes
-- Read a job.
-- KEYS  1 job
-- ARGV  1 "1" with its intermediate outputs, or ""  2 "1" only if it is the caller's, or ""  3 caller
-- Reply { caller, containers, state, step, attempt, created, ended, output, error, failed_in, intermediate output, ... };
--       nothing when it is not known; another's job is read no further, so that it takes no longer than an unknown one
local function one(keys, args)
  if args[2] == '1' and redis.call('HGET', keys[1], 'caller') ~= args[3] then return {} end
  local known = redis.call('HMGET', keys[1], 'caller', 'containers', 'state', 'step', 'attempt', 'created', 'ended',
    'out', 'error', 'failed_in')
  if not known[1] then return {} end
  if args[1] == '1' then
    for i = 1, tonumber(known[4]) or 0 do known[10 + i] = redis.call('HGET', keys[1], 'o' .. string.format('%d', i - 1)) end
  end
  return known
end
