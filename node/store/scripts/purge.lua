#!lua flags=allow-oom
-- Remove ended jobs that were kept for long enough, from every index at once.
-- KEYS  1 ended jobs of one state
-- ARGV  1 how long they are kept, seconds  2 how many at most
-- Reply how many were removed
-- State succeeded | failed | cancelled -> (none)
local function one(keys, args)
  local ids = redis.call('ZRANGEBYSCORE', keys[1], '-inf', now - args[1], 'LIMIT', '0', args[2])
  for _, id in ipairs(ids) do
    local caller = redis.call('HGET', job_key(id), 'caller')
    if caller then redis.call('ZREM', PREFIX .. 'finished:' .. caller, id) end
    redis.call('ZREM', PREFIX .. 'dead', id)
    redis.call('ZREM', keys[1], id)
    redis.call('UNLINK', job_key(id))
  end
  return #ids
end
