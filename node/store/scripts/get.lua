#!lua flags=no-writes
-- Read a job, if its outputs fit into what is left of this call's room: a reply holds up everybody who waits behind it.
-- KEYS  1 job
-- Shared 1 "1" with its intermediate outputs, or ""  2 "1" only if it is the caller's, or ""  3 caller
--       4 bytes of outputs that the whole call may answer, or "" for any
-- Reply { caller, containers, state, step, attempt, created, ended, output, error, failed_in, intermediate output, ... };
--       how many bytes its outputs have, when there is no room for them;
--       nothing when it is not known, or another's; of that its outputs are not read
local answered = 0

-- The size of large outputs is asked for before they are read.
local function sizes(key, fields)
  local size = 0
  for _, field in ipairs(fields) do size = size + redis.call('HSTRLEN', key, field) end
  return size
end

local function one(keys, args, shared)
  local known = redis.call('HMGET', keys[1],
    'caller', 'containers', 'state', 'step', 'attempt', 'created', 'ended', 'out', 'error', 'failed_in', 'large')
  if not known[1] or (shared[2] == '1' and known[1] ~= shared[3]) then return {} end
  local large, steps = known[11], shared[1] == '1' and tonumber(known[4]) or 0
  known[11] = nil
  local fields = { 'big' }
  for i = 1, steps do fields[i + 1] = 'o' .. string.format('%d', i - 1) end
  local room = tonumber(shared[4])
  if room and (large or answered > room) then
    local size = sizes(keys[1], fields) + #(known[8] or '')
    if size > 0 and answered + size > room then return size end
  end
  if large or steps > 0 then
    local outputs = redis.call('HMGET', keys[1], unpack(fields))
    known[8] = known[8] or outputs[1]
    for i = 2, #outputs do known[i + 9] = outputs[i] end
  end
  for i = 8, #known do answered = answered + (i ~= 9 and i ~= 10 and known[i] and #known[i] or 0) end
  return known
end
