#!lua flags=allow-oom
-- Say that a node is there and what it has; find out whether this is still the store that it knew.
-- KEYS  1 nodes  2 served  3 mark  4 back  5 owner of the node's name
-- ARGV  1 names of the node's processes, JSON list  2 containers, JSON list  3 mark for a store that has none  4 silence after which a node counts as gone, seconds
--       5 who we are  6 how long the name stays ours without a word, seconds
-- Reply the store's mark; '' when somebody else has the name (nothing is changed)
-- State unchanged
local function one(keys, args)
  local owner = redis.call('GET', keys[5])
  if owner and owner ~= args[5] then return '' end
  redis.call('SET', keys[5], args[5], 'PX', math.ceil(args[6] * 1000))
  local last = redis.call('ZREVRANGE', keys[1], '0', '0', 'WITHSCORES')[2]
  -- After a time in which no node was heard, for the store was away or all were down, all get their time to come back.
  if now - (last or 0) > args[4] / 2 then redis.call('SET', keys[4], now) end
  redis.call('ZREMRANGEBYSCORE', keys[1], '-inf', now - 86400 - args[4])
  redis.call('ZREMRANGEBYSCORE', keys[2], '-inf', now - 86400 - args[4])
  for _, name in ipairs(cjson.decode(args[1])) do redis.call('ZADD', keys[1], now, name) end
  for _, container in ipairs(cjson.decode(args[2])) do redis.call('ZADD', keys[2], now, container) end
  redis.call('SET', keys[3], args[3], 'NX')
  return redis.call('GET', keys[3])
end
