-- Stands after every script: runs its function `one` for each operation of the call.
-- ARGV  1 keys of one operation  2 arguments of one operation  3 arguments that all of them share; then those, then the
--       operations' own, one after the other
-- Reply a list: what `one` returned, or an error, for each operation
local nkeys, nargs, nshared, replies = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), {}
local shared = { unpack(ARGV, 4, nshared + 3) }
for i = 1, #KEYS / nkeys do
  local keys = { unpack(KEYS, (i - 1) * nkeys + 1, i * nkeys) }
  local args = { unpack(ARGV, nshared + (i - 1) * nargs + 4, nshared + i * nargs + 3) }
  -- A microsecond apart, so that the jobs of a batch are listed in its order; the call takes longer than that.
  now = string.format('%.6f', (time[1] * 1000000 + time[2] + i - 1) / 1000000)
  local fine, reply = pcall(one, keys, args, shared)
  if not fine then reply = { err = type(reply) == 'table' and reply.err or tostring(reply) } end
  replies[i] = reply
end
settle()
return replies
