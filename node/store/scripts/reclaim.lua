#!lua flags=allow-oom
-- Take back steps whose lease is over, and queue them again; fail the jobs whose worker died too often.
-- KEYS  1 lane  2 bulk queue
-- ARGV  1 idle time that ends a lease, milliseconds  2 only this consumer's, or ''  3 how many entries at most
--       4 deliveries after which the job fails; 0: it was not begun, which does not count  5 container of the lane
--       6 only these entries, JSON list, however long they were idle; or ''
-- Reply { job id, new state, ... }
-- State running -> queued | failed

-- Take back one step; the job's new state, or nothing when the entry is not what runs.
local function taken_back(entry, id, step, container, most)
  local known = redis.call('HMGET', job_key(id), 'state', 'step', 'entry', 'caller', 'created')
  if known[1] ~= 'running' or known[2] ~= step or known[3] ~= entry then return nil end
  local lost = most > 0 and redis.call('HINCRBY', job_key(id), 'lost', 1) or -1
  if lost < most then
    redis.call('HSET', job_key(id), 'state', 'queued', 'entry', enqueue(id, container, step, entry))
    return 'queued'
  end
  conclude(id, 'failed', known[4], known[5], 'failed_in', container,
    'error', "container '" .. container .. "': its worker died " .. lost .. ' times')
  redis.call('ZADD', PREFIX .. 'dead', now, id)
  return 'failed'
end

-- The entries whose lease is over.
local function lapsed(keys, args)
  if args[6] ~= '' then return cjson.decode(args[6]) end
  local entries = {}
  for i, stream in ipairs(keys) do
    local range = { 'XPENDING', stream, 'nodes', 'IDLE', args[1], '-', '+', args[3] }
    if args[2] ~= '' then range[#range + 1] = args[2] end
    for _, row in ipairs(grouped(stream, unpack(range))) do entries[#entries + 1] = (i == 2 and 'b' or '') .. row[1] end
  end
  return entries
end

local function one(keys, args)
  local reply = {}
  for _, entry in ipairs(lapsed(keys, args)) do
    local stream, place_id = place(args[5], entry)
    local stored = redis.call('XRANGE', stream, place_id, place_id)
    dequeue(args[5], entry)
    local fields = named(stored[1] and stored[1][2] or {})
    local state = fields.j and taken_back(entry, fields.j, fields.s, args[5], tonumber(args[4]))
    if state then
      reply[#reply + 1] = fields.j
      reply[#reply + 1] = state
    end
  end
  return reply
end
