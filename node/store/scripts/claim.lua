#!lua flags=allow-oom
-- Take steps of a container and begin them: those of its lane first, those of its bulk queue in what is left. One time in
-- four it is the other way round, so that the bulk queue moves on also behind a lane that is never empty.
-- KEYS  1 lane  2 bulk queue
-- ARGV  1 consumer  2 how many at most
-- Reply { tail, { entry, job id, caller, containers, step, attempt, proof, input }, ... }
--       tail: '' when there may be more; else the last ids that the lane and the bulk queue ever had, to wait from there
--       input: of a large one only how many bytes it has
-- State queued -> running
-- The keys of the jobs stand in the entries, so they cannot be named beforehand; they share the lane's hash tag.

local function removed(stream, entry)
  later('XACK', stream, entry)
  later('XDEL', stream, entry)
end

-- Begin the step of one entry; nothing when it is not to be run.
local function begun(stream, mark, consumer, entry, fields)
  local id, step = fields.j, fields.s
  if not (id and tonumber(step)) then -- not ours; a job that has lost its entry gets a new one from the janitor
    removed(stream, entry)
    return nil
  end
  local job, large = job_key(id), tonumber(fields.n)
  local known = redis.call('HMGET', job, 'state', 'entry', 'attempt', 'step', 'caller', 'containers', 'proof',
    large and 'proof' or input_of(step))
  if known[1] == 'running' and known[2] == mark .. entry then -- the group was lost and made again; its node still has it
    redis.call('XCLAIM', stream, 'nodes', redis.call('HGET', job, 'node') or consumer, '0', entry, 'JUSTID')
    return nil
  end
  if known[1] ~= 'queued' or known[4] ~= step then -- ended while it waited, or queued a second time
    removed(stream, entry)
    return nil
  end
  local attempt = string.format('%d', (tonumber(known[3]) or 0) + 1)
  redis.call('HSET', job, 'state', 'running', 'attempt', attempt, 'node', consumer)
  if known[2] ~= mark .. entry then redis.call('HSET', job, 'entry', mark .. entry) end
  return { mark .. entry, id, known[5], known[6], step, attempt, known[7], large or known[8] }
end

local function tail(stream)
  return named(redis.call('XINFO', 'STREAM', stream))['last-generated-id']
end

local function one(keys, args)
  local reply, left = { '' }, tonumber(args[2])
  local streams = { { keys[1], '' }, { keys[2], 'b' } }
  if time[2] % 4 == 0 then streams = { streams[2], streams[1] } end
  for _, each in ipairs(streams) do
    local stream, mark = each[1], each[2]
    local found = grouped(stream, 'XREADGROUP', 'GROUP', 'nodes', args[1], 'COUNT', left, 'STREAMS', stream, '>')
    local rows = found and found[1] and found[1][2] or {}
    for _, row in ipairs(rows) do reply[#reply + 1] = begun(stream, mark, args[1], row[1], named(row[2])) end
    left = left - #rows
    if left == 0 then return reply end
  end
  reply[1] = tail(keys[1]) .. ' ' .. tail(keys[2])
  return reply
end
