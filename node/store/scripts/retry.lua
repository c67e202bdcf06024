-- Start an ended job again from the step that it ended in, as a new job that begins with its finished outputs.
-- KEYS  1 job  2 new job
-- ARGV  1 job id  2 new id  3 seconds until the janitor looks at it first  4 most live jobs of its caller
--       5 live jobs of the caller from which on its steps go to the bulk queue  6 limits of entries, JSON: by container
--       7 that of the others
-- Reply { new id } or { id of the earlier retry }; { 'state', state } when it has not failed or been cancelled;
--       { 'nothing' } when it is not known, or has no data to run on; { 'full', 'lane' | 'caller', container }
-- State (none) -> queued, of the new job; the old one stays as it is
local function one(keys, args)
  local old = named(redis.call('HGETALL', keys[1]))
  local container = old.data and old.data ~= '' and container_of(old.containers, old.step)
  if not container then return { 'nothing' } end
  if old.state ~= 'failed' and old.state ~= 'cancelled' then return { 'state', old.state } end
  if old.retried_as and redis.call('EXISTS', job_key(old.retried_as)) == 1 then return { old.retried_as } end
  local live = redis.call('ZCARD', PREFIX .. 'pending:' .. old.caller)
  if live >= tonumber(args[4]) then return { 'full', 'caller', container } end
  local like = live >= tonumber(args[5]) and 'b' or ''
  local waiting = redis.call('XLEN', lane_key(container)) + (like == 'b' and redis.call('XLEN', bulk_key(container)) or 0)
  if waiting >= (cjson.decode(args[6])[container] or tonumber(args[7])) then return { 'full', 'lane', container } end
  local fields = { 'state', 'queued', 'created', now, 'attempt', '0', 'retry_of', args[1] }
  for _, name in ipairs({ 'caller', 'containers', 'data', 'proof', 'step', 'queue_s', 'total_s', 'large' }) do
    if old[name] then
      fields[#fields + 1] = name
      fields[#fields + 1] = old[name]
    end
  end
  for i = 0, old.step - 1 do
    fields[#fields + 1] = 'o' .. string.format('%d', i)
    fields[#fields + 1] = old['o' .. string.format('%d', i)]
  end
  local entry = enqueue(args[2], container, old.step, like, #(old[input_of(old.step)] or ''))
  redis.call('HSET', keys[2], 'entry', entry, unpack(fields))
  redis.call('HSET', keys[1], 'retried_as', args[2])
  redis.call('ZADD', PREFIX .. 'live', now + args[3], args[2])
  redis.call('ZADD', PREFIX .. 'pending:' .. old.caller, now, args[2])
  redis.call('ZREM', PREFIX .. 'dead', args[1])
  return { args[2] }
end
