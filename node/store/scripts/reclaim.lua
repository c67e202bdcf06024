#!lua flags=allow-oom
-- Take back steps whose lease is over, and queue them again; fail the jobs whose worker died too often.
-- KEYS  1 lane  2 live  3 ended
-- ARGV  1 idle time that ends a lease, milliseconds  2 only this consumer's, or ''  3 how many entries at most
--       4 deliveries after which the job fails  5 container of the lane  6 key prefix of the store
-- Reply { job id, new state, ... }
-- State running -> queued | failed
local range = { 'XPENDING', KEYS[1], 'nodes', 'IDLE', ARGV[1], '-', '+', ARGV[3] }
if ARGV[2] ~= '' then range[#range + 1] = ARGV[2] end
local pending = redis.pcall(unpack(range))
if pending.err then
  if string.find(pending.err, 'NOGROUP', 1, true) then return {} end
  return pending
end
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
local reply = {}
for _, row in ipairs(pending) do
  local entry = row[1]
  local stored = redis.call('XRANGE', KEYS[1], entry, entry)
  redis.call('XACK', KEYS[1], 'nodes', entry)
  redis.call('XDEL', KEYS[1], entry)
  if stored[1] then
    local id, step = stored[1][2][2], stored[1][2][4]
    local job = ARGV[6] .. 'job:' .. id
    local known = redis.call('HMGET', job, 'state', 'step', 'entry', 'caller', 'created')
    if known[1] == 'running' and known[2] == step and known[3] == entry then
      local lost = redis.call('HINCRBY', job, 'lost', 1)
      local state
      if lost >= tonumber(ARGV[4]) then
        state = 'failed'
        redis.call('HSET', job, 'state', state, 'ended', now, 'failed_in', ARGV[5],
          'error', "container '" .. ARGV[5] .. "': its worker died " .. lost .. ' times')
        redis.call('HDEL', job, 'entry')
        redis.call('ZREM', KEYS[2], id)
        redis.call('ZREM', ARGV[6] .. 'pending:' .. known[4], id)
        redis.call('ZADD', ARGV[6] .. 'finished:' .. known[4], known[5], id)
        redis.call('ZADD', KEYS[3], now, id)
      else
        state = 'queued'
        local fresh = redis.call('XADD', KEYS[1], '*', 'j', id, 's', step)
        redis.call('HSET', job, 'state', state, 'entry', fresh)
      end
      reply[#reply + 1] = id
      reply[#reply + 1] = state
    end
  end
end
return reply
