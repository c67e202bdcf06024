-- Stands before every script, after `PREFIX`, which all keys begin with: the time of the store, and what several scripts do.
-- Keys that a script meets only while it runs (of a caller, of a lane's entries) are named here as `keys.py` names them.

-- Unix seconds with six decimals; set anew for each operation.
local time = redis.call('TIME')
local now

-- Bytes; an input or output of more is not read with others, but alone, when its turn comes.
local LARGE = 16384

local LIVE = PREFIX .. 'live'
local function job_key(id) return PREFIX .. 'job:' .. id end
local function lane_key(container) return PREFIX .. 'lane:' .. container end
local function bulk_key(container) return PREFIX .. 'bulk:' .. container end

-- A flat list of names and values as a table.
local function named(list)
  local values = {}
  for i = 1, #list, 2 do values[list[i]] = list[i + 1] end
  return values
end

-- Writes to indexes wait for the end of the call: one command then carries those of all its operations. Nothing that a
-- call still reads may wait so. A call has at most some hundred operations, which is what one command can take.
local waiting, in_order = { XACK = {}, XDEL = {}, ZADD = {}, ZREM = {} }, {}
local AFTER_KEY = { XACK = 'nodes' }

local function later(command, key, word, member)
  local words = waiting[command][key]
  if not words then
    words = { command, key, AFTER_KEY[command] }
    waiting[command][key] = words
    in_order[#in_order + 1] = words
  end
  words[#words + 1] = word
  words[#words + 1] = member
end

local function settle()
  local failed
  for _, words in ipairs(in_order) do
    local reply = redis.pcall(unpack(words))
    -- A stream that somebody broke is the janitor's; an index that cannot be written must be told, after all others were.
    if type(reply) == 'table' and reply.err and string.sub(words[1], 1, 1) ~= 'X' then failed = failed or reply end
  end
  if failed then error(failed) end
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

-- The field with the input of a step.
local function input_of(step)
  return step == '0' and 'data' or 'o' .. string.format('%d', step - 1)
end

-- The field of a job's last output.
local function last_output(job, output)
  if #output <= LARGE then return 'out' end
  redis.call('HSET', job, 'large', '1')
  return 'big'
end

-- Put a step at the end of its lane, or of the bulk queue; the job's record is told the entry by the caller. A job keeps
-- the kind that it has: `like` is an entry of it. size: of its input, where it is known.
local function enqueue(id, container, step, like, size)
  local bulk = string.sub(like or '', 1, 1) == 'b'
  local stream = bulk and bulk_key(container) or lane_key(container)
  size = size or redis.call('HSTRLEN', job_key(id), input_of(step))
  local entry
  if size > LARGE then
    entry = redis.call('XADD', stream, '*', 'j', id, 's', step, 'n', size)
  else
    entry = redis.call('XADD', stream, '*', 'j', id, 's', step)
  end
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
  later('XACK', stream, place_id)
  later('XDEL', stream, place_id)
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
  later('ZREM', LIVE, id)
  later('ZREM', PREFIX .. 'pending:' .. caller, id)
  later('ZADD', PREFIX .. 'finished:' .. caller, tonumber(created) and created or now, id)
  later('ZADD', PREFIX .. 'ended:' .. state, now, id)
end
