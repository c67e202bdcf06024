#!lua flags=allow-oom
-- Take steps of a container and begin them: those of its lane first, those of its bulk queue in what is left. One time in
-- four it is the other way round, so that the bulk queue moves on also behind a lane that is never empty.
-- KEYS  1 lane  2 bulk queue
-- ARGV  1 consumer  2 how many at most  3 bytes of their inputs after which no other is taken
-- Reply { tail, { entry, job id, caller, containers, step, attempt, proof, input }, ... }
--       tail: '' when there may be more; else the last ids that the lane and the bulk queue ever had, to wait from there
-- State queued -> running
-- The keys of the jobs stand in the entries, so they cannot be named beforehand; they share the lane's hash tag.

-- Begin the step of one entry; nothing when it is not to be run.
local function begun(stream, mark, consumer, entry, id, step)
  local job = job_key(id)
  local known = redis.call('HMGET', job, 'state', 'step', 'caller', 'containers', 'proof', 'attempt', 'entry', 'node')
  if known[1] == 'running' and known[7] == mark .. entry then -- the group was lost and made again; its node still has it
    redis.call('XCLAIM', stream, 'nodes', known[8] or consumer, '0', entry, 'JUSTID')
    return nil
  end
  if known[1] ~= 'queued' or known[2] ~= step then -- ended while it waited, or queued a second time
    redis.call('XACK', stream, 'nodes', entry)
    redis.call('XDEL', stream, entry)
    return nil
  end
  local attempt = string.format('%d', (tonumber(known[6]) or 0) + 1)
  redis.call('HSET', job, 'state', 'running', 'attempt', attempt, 'node', consumer, 'entry', mark .. entry)
  local input = redis.call('HGET', job, step == '0' and 'data' or 'o' .. string.format('%d', step - 1))
  return { mark .. entry, id, known[3], known[4], step, attempt, known[5], input or false }
end

-- Take the next entry of a stream, and begin its step; whether there was one, and the bytes of the step's input.
local function taken(stream, mark, consumer, reply)
  local found = grouped(stream, 'XREADGROUP', 'GROUP', 'nodes', consumer, 'COUNT', '1', 'STREAMS', stream, '>')
  local entry = found and found[1] and found[1][2][1]
  if not entry then return false, 0 end
  local fields = named(entry[2])
  if not (fields.j and tonumber(fields.s)) then -- not ours; a job that has lost its entry gets a new one from the janitor
    redis.call('XACK', stream, 'nodes', entry[1])
    redis.call('XDEL', stream, entry[1])
    return true, 0
  end
  local step = begun(stream, mark, consumer, entry[1], fields.j, fields.s)
  reply[#reply + 1] = step
  return true, step and #(step[8] or '') or 0
end

local function tail(stream)
  return named(redis.call('XINFO', 'STREAM', stream))['last-generated-id']
end

local function one(keys, args)
  local reply, most, left_bytes = { '' }, tonumber(args[2]), tonumber(args[3])
  local streams = { { keys[1], '' }, { keys[2], 'b' } }
  if time[2] % 4 == 0 then streams = { streams[2], streams[1] } end
  for _, each in ipairs(streams) do
    local more, bytes = true, 0
    while more do
      if #reply > most or left_bytes <= 0 then return reply end
      more, bytes = taken(each[1], each[2], args[1], reply)
      left_bytes = left_bytes - bytes
    end
  end
  reply[1] = tail(keys[1]) .. ' ' .. tail(keys[2])
  return reply
end
