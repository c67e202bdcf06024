#!lua flags=allow-oom
-- Take steps from a lane and begin them.
-- KEYS  1 lane
-- ARGV  1 consumer  2 how many at most  3 key prefix of the store
-- Reply { tail, { entry, job id, caller, containers, step, attempt, proof, input }, ... }
--       tail: '' when there may be more; else the last id the lane ever had, to wait for the next one from there
-- State queued -> running
-- The keys of the jobs stand in the entries, so they cannot be named beforehand; they share the lane's hash tag.
local function one(keys, args)
  local count = tonumber(args[2])
  local function read()
    return redis.pcall('XREADGROUP', 'GROUP', 'nodes', args[1], 'COUNT', count, 'STREAMS', keys[1], '>')
  end
  local found = read()
  if found and found.err then
    if not string.find(found.err, 'NOGROUP', 1, true) then return found end
    redis.call('XGROUP', 'CREATE', keys[1], 'nodes', '0', 'MKSTREAM')
    found = read()
    if found and found.err then return found end
  end
  local entries = found and found[1] and found[1][2] or {}
  local reply = { '' }
  for _, entry in ipairs(entries) do
    local id, step = entry[2][2], entry[2][4]
    local job = args[3] .. 'job:' .. id
    local known = redis.call('HMGET', job, 'state', 'step', 'caller', 'containers', 'proof', 'attempt')
    if known[1] == 'queued' and known[2] == step then
      local attempt = string.format('%d', known[6] + 1)
      redis.call('HSET', job, 'state', 'running', 'attempt', attempt, 'node', args[1], 'entry', entry[1])
      local input = redis.call('HGET', job, step == '0' and 'data' or 'o' .. string.format('%d', step - 1))
      reply[#reply + 1] = { entry[1], id, known[3], known[4], step, attempt, known[5], input }
    else -- ended while it waited, or queued a second time
      redis.call('XACK', keys[1], 'nodes', entry[1])
      redis.call('XDEL', keys[1], entry[1])
    end
  end
  if #entries < count then
    local about = redis.call('XINFO', 'STREAM', keys[1])
    for i = 1, #about, 2 do
      if about[i] == 'last-generated-id' then reply[1] = about[i + 1] end
    end
  end
  return reply
end
