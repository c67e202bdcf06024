#!lua flags=allow-oom
-- Say that a node is there and what it has; find out whether this is still the store that it knew.
-- KEYS  1 nodes  2 served  3 mark
-- ARGV  1 node  2 containers, JSON list  3 mark for a store that has none
-- Reply the store's mark
-- State unchanged
local function one(keys, args)
  redis.call('ZADD', keys[1], now, args[1])
  for _, container in ipairs(cjson.decode(args[2])) do redis.call('ZADD', keys[2], now, container) end
  redis.call('SET', keys[3], args[3], 'NX')
  return redis.call('GET', keys[3])
end
