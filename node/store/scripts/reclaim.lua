#!lua flags=allow-oom
-- Take back steps whose lease is over, and queue them again; fail the jobs whose worker died too often.
-- KEYS  1 lane  2 live  3 ended
-- ARGV  1 idle time that ends a lease, milliseconds  2 only this consumer's, or ''  3 how many entries at most
--       4 deliveries after which the job fails  5 container of the lane  6 key prefix of the store
-- Reply { job id, new state, ... }
-- State running -> queued | failed
local function one(keys, args)
  local range = { 'XPENDING', keys[1], 'nodes', 'IDLE', args[1], '-', '+', args[3] }
  if args[2] ~= '' then range[#range + 1] = args[2] end
  local pending = redis.pcall(unpack(range))
  if pending.err then
    if string.find(pending.err, 'NOGROUP', 1, true) then return {} end
    return pending
  end
  local reply = {}
  for _, row in ipairs(pending) do
    local entry = row[1]
    local stored = redis.call('XRANGE', keys[1], entry, entry)
    redis.call('XACK', keys[1], 'nodes', entry)
    redis.call('XDEL', keys[1], entry)
    if stored[1] then
      local id, step = stored[1][2][2], stored[1][2][4]
      local job = args[6] .. 'job:' .. id
      local known = redis.call('HMGET', job, 'state', 'step', 'entry', 'caller', 'created')
      if known[1] == 'running' and known[2] == step and known[3] == entry then
        local lost = redis.call('HINCRBY', job, 'lost', 1)
        local state
        if lost >= tonumber(args[4]) then
          state = 'failed'
          redis.call('HSET', job, 'state', state, 'ended', now, 'failed_in', args[5],
            'error', "container '" .. args[5] .. "': its worker died " .. lost .. ' times')
          redis.call('HDEL', job, 'entry')
          redis.call('ZREM', keys[2], id)
          redis.call('ZREM', args[6] .. 'pending:' .. known[4], id)
          redis.call('ZADD', args[6] .. 'finished:' .. known[4], known[5], id)
          redis.call('ZADD', keys[3], now, id)
        else
          state = 'queued'
          local fresh = redis.call('XADD', keys[1], '*', 'j', id, 's', step)
          redis.call('HSET', job, 'state', state, 'entry', fresh)
        end
        reply[#reply + 1] = id
        reply[#reply + 1] = state
      end
    end
  end
  return reply
end
