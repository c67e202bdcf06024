#!lua flags=allow-oom
-- End a job from outside its chain: a cancel, a reported status, a stream's end, a node's start after a crash.
-- KEYS  1 job  2 stopped, the channel on which whoever runs a step of the job is told
-- ARGV  1 job id  2 state  3 error, or ''  4 container that failed, or ''  5 output, JSON, or ''
--       6 '' when whoever runs it ends it  7 '1' for the list of dead letters
-- Reply the state that the job had before; '' when it is not known
-- State queued | running -> succeeded | failed | cancelled; a terminal state is left as it is
local function one(keys, args)
  local known = redis.call('HMGET', keys[1], 'state', 'caller', 'created', 'containers', 'step', 'entry', 'node')
  local state = known[1]
  if not state then
    redis.call('ZREM', PREFIX .. 'live', args[1])
    return ''
  end
  if state ~= 'queued' and state ~= 'running' then return state end
  if known[7] then redis.call('SREM', PREFIX .. 'streams:' .. known[7], args[1]) end
  local container = known[6] and container_of(known[4], known[5])
  if container then dequeue(container, known[6]) end
  local facts = {}
  if args[3] ~= '' then facts = { 'error', args[3], 'failed_in', args[4] } end
  if args[5] ~= '' then facts = { last_output(keys[1], args[5]), args[5] } end
  conclude(args[1], args[2], known[2] or '', known[3] or now, unpack(facts))
  if args[7] == '1' then redis.call('ZADD', PREFIX .. 'dead', now, args[1]) end
  if state == 'running' and args[6] ~= '' then redis.call('PUBLISH', keys[2], args[1]) end
  return state
end
