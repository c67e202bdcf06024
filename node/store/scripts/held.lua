-- Which entries of a lane and its bulk queue a consumer has had for a while without renewing them.
-- KEYS  1 lane  2 bulk queue
-- ARGV  1 consumer  2 for how long, milliseconds  3 how many of each at most
-- Reply { entry, ... }, as a job's record names it
-- State unchanged
local function one(keys, args)
  local reply = {}
  for i, stream in ipairs(keys) do
    for _, row in ipairs(grouped(stream, 'XPENDING', stream, 'nodes', 'IDLE', args[2], '-', '+', args[3], args[1])) do
      reply[#reply + 1] = (i == 2 and 'b' or '') .. row[1]
    end
  end
  return reply
end
