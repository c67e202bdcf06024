-- Stands before every script, after `PREFIX`, which all keys begin with: the time of the store, and what several scripts do.
-- Keys that a script meets only while it runs (of a caller, of a lane's entries) are named here as `keys.py` names them.

-- Unix seconds with six decimals; set anew for each operation.
local time = redis.call('TIME')
local now

local function job_key(id) return PREFIX .. 'job:' .. id end
local function lane_key(container) return PREFIX .. 'lane:' .. container end
local function bulk_key(container) return PREFIX .. 'bulk:' .. container end

-- A flat list of names and values as a table.
local function named(list)
  local values = {}
  for i = 1, #list, 2 do values[list[i]] = list[i + 1] end
  return values
end

-- The container of a step; nothing when the record is broken.
local function container_of(containers, step)
  local fine, chain = pcall(cjson.decode, containers)
  if not fine or type(chain) ~= 'table' then return nil end
  local container = chain[(tonumber(step) or -1) + 1]
  return type(container) == 'string' and container or nil
end

-- Call with the group of a stream; it is made, from the first entry on, where it is missing.
local function grouped(stream, ...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err and string.find(reply.err, 'NOGROUP', 1, true) then
    redis.call('XGROUP', 'CREATE', stream, 'nodes', '0', 'MKSTREAM')
    reply = redis.pcall(...)
  end
  if type(reply) == 'table' and reply.err then error(reply) end
  return reply
end

-- Put a step at the end of its lane, or of the bulk queue; the job's record is told the entry by the caller. A job keeps
-- the kind that it has: `like` is an entry of it.
local function enqueue(id, container, step, like)
  local bulk = string.sub(like or '', 1, 1) == 'b'
  local entry = redis.call('XADD', bulk and bulk_key(container) or lane_key(container), '*', 'j', id, 's', step)
  return bulk and 'b' .. entry or entry
end

-- Where an entry stands, as a job's record names it: its stream, and its id there.
local function place(container, entry)
  if string.sub(entry, 1, 1) == 'b' then return bulk_key(container), string.sub(entry, 2) end
  return lane_key(container), entry
end

-- Take an entry out of its stream, whether it waits or runs.
local function dequeue(container, entry)
  local stream, place_id = place(container, entry)
  redis.pcall('XACK', stream, 'nodes', place_id)
  redis.pcall('XDEL', stream, place_id)
end

-- Hold a running step for a consumer: its lease begins now. What was lost of the lease, or of the entry, is made again.
local function hold(id, container, step, entry, consumer)
  if entry then
    local stream, place_id = place(container, entry)
    if #grouped(stream, 'XCLAIM', stream, 'nodes', consumer, '0', place_id, 'FORCE', 'JUSTID') > 0 then return end
  end
  local fresh = enqueue(id, container, step, entry)
  local stream, place_id = place(container, fresh)
  grouped(stream, 'XCLAIM', stream, 'nodes', consumer, '0', place_id, 'FORCE', 'JUSTID')
  redis.call('HSET', job_key(id), 'entry', fresh)
end

-- End a job: out of the indexes of live jobs, into those of ended ones. Then: fields and values to record.
local function conclude(id, state, caller, created, ...)
  redis.call('HSET', job_key(id), 'state', state, 'ended', now, ...)
  redis.call('HDEL', job_key(id), 'entry')
  redis.call('ZREM', PREFIX .. 'live', id)
  redis.call('ZREM', PREFIX .. 'pending:' .. caller, id)
  redis.call('ZADD', PREFIX .. 'finished:' .. caller, created, id)
  redis.call('ZADD', PREFIX .. 'ended:' .. state, now, id)
end
