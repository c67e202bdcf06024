#!lua flags=no-writes
-- Read a job, if its outputs fit into what is left of this call's room: a reply holds up everybody who waits behind it.
-- KEYS  1 job
-- ARGV  1 "1" with its intermediate outputs, or ""  2 "1" only if it is the caller's, or ""  3 caller
--       4 bytes of outputs that the whole call may answer, or "" for any
-- Reply { caller, containers, state, step, attempt, created, ended, output, error, failed_in, intermediate output, ... };
--       how many bytes its outputs have, when there is no room for them;
--       nothing when it is not known; another's job is read no further, so that it takes no longer than an unknown one
local answered = 0

local function one(keys, args)
  if args[2] == '1' and redis.call('HGET', keys[1], 'caller') ~= args[3] then return {} end
  local fields = { 'caller', 'containers', 'state', 'step', 'attempt', 'created', 'ended', 'out', 'error', 'failed_in' }
  if args[1] == '1' then
    for i = 1, tonumber((redis.call('HGET', keys[1], 'step'))) or 0 do fields[10 + i] = 'o' .. string.format('%d', i - 1) end
  end
  local size = redis.call('HSTRLEN', keys[1], 'out')
  for i = 11, #fields do size = size + redis.call('HSTRLEN', keys[1], fields[i]) end
  local room = tonumber(args[4])
  if room and size > 0 and answered + size > room then return size end
  answered = answered + size
  local known = redis.call('HMGET', keys[1], unpack(fields))
  if not known[1] then return {} end
  return known
end
