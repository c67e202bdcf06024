-- Stands before every script: the time of the store, Unix seconds with six decimals. `now` is set for each operation.
local time = redis.call('TIME')
local now
