#!lua flags=allow-oom
-- Take steps from a lane and begin them.
-- KEYS  1 lane
-- ARGV  1 consumer  2 how many at most
-- Reply { tail, { entry, job id, caller, containers, step, attempt, proof, input }, ... }
--       tail: '' when there may be more; else the last id the lane ever had, to wait for the next one from there
-- State queued -> running
-- The keys of the jobs stand in the entries, so they cannot be named beforehand; they share the lane's hash tag.

-- Begin the step of one entry; nothing when it is not to be run.
local function begun(lane, consumer, entry, id, step)
  local job = job_key(id)
  local known = redis.call('HMGET', job, 'state', 'step', 'caller', 'containers', 'proof', 'attempt', 'entry', 'node')
  if known[1] == 'running' and known[7] == entry then -- the group was lost and made again; its node still has it
    redis.call('XCLAIM', lane, 'nodes', known[8] or consumer, '0', entry, 'JUSTID')
    return nil
  end
  if known[1] ~= 'queued' or known[2] ~= step then -- ended while it waited, or queued a second time
    dequeue(lane, entry)
    return nil
  end
  local attempt = string.format('%d', (tonumber(known[6]) or 0) + 1)
  redis.call('HSET', job, 'state', 'running', 'attempt', attempt, 'node', consumer, 'entry', entry)
  local input = redis.call('HGET', job, step == '0' and 'data' or 'o' .. string.format('%d', step - 1))
  return { entry, id, known[3], known[4], step, attempt, known[5], input or false }
end

local function one(keys, args)
  local count = tonumber(args[2])
  local found = grouped(keys[1], 'XREADGROUP', 'GROUP', 'nodes', args[1], 'COUNT', count, 'STREAMS', keys[1], '>')
  local entries = found and found[1] and found[1][2] or {}
  local reply = { '' }
  for _, entry in ipairs(entries) do
    local fields = named(entry[2])
    if fields.j and fields.s and tonumber(fields.s) then
      reply[#reply + 1] = begun(keys[1], args[1], entry[1], fields.j, fields.s)
    else -- not ours; a job that has lost its entry gets a new one from the janitor
      dequeue(keys[1], entry[1])
    end
  end
  if #entries < count then reply[1] = named(redis.call('XINFO', 'STREAM', keys[1]))['last-generated-id'] end
  return reply
end
