-- Stands before every script: the time of the store, Unix seconds with six decimals.
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
