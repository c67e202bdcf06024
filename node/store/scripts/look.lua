#!lua flags=allow-oom
-- Look at live jobs whose turn it is: end what is overdue or can never run, mend what has lost its entry or its lease.
-- KEYS  1 live  2 stopped, the channel on which whoever runs a step of the job is told
-- ARGV  1 how many at most  2 seconds until each is looked at again  3 queue timeout  4 total timeout
--       5 silence after which a node counts as gone; all in seconds
-- Reply { how many were looked at, { job id, 'queued' | 'held' | 'failed' | 'forgotten', why }, ... }: what was changed
-- State queued | running -> failed

local FIELDS = { 'state', 'step', 'entry', 'node', 'attempt', 'caller', 'containers', 'created', 'queue_s', 'total_s' }

-- The record without its payloads; nothing when it is gone.
local function record(id)
  local job, values = {}, redis.call('HMGET', job_key(id), unpack(FIELDS))
  for i, name in ipairs(FIELDS) do job[name] = values[i] end
  if not job.state then return nil end
  job.container = container_of(job.containers or '', job.step)
  job.broken = not (job.caller and tonumber(job.created) and tonumber(job.attempt) and tonumber(job.step))
    or (job.state == 'queued' and not job.container) or (job.state == 'running' and not job.node)
    or (job.entry and not (job.container and string.find(job.entry, '^b?%d+%-%d+$')))
  return job
end

local function silent(index, name, gone_s)
  local seen = redis.call('ZSCORE', PREFIX .. index, name)
  return now - math.max(seen or 0, redis.call('GET', PREFIX .. 'back') or 0) > gone_s
end

local function unserved(container, gone_s)
  return silent('served', container, gone_s)
    and "container '" .. container .. "': no node has had it for " .. gone_s .. ' s (runner.gone_s)'
end

-- How long a queued job may wait on, in seconds; or why it must end. Its entry is made again if it was lost.
local function queued(id, job, args)
  local stream, entry = place(job.container, job.entry or '')
  if entry == '' or not redis.call('XRANGE', stream, entry, entry)[1] then
    job.entry = enqueue(id, job.container, job.step, job.entry or nil)
    redis.call('HSET', job_key(id), 'entry', job.entry)
    job.change = 'queued'
  end
  local waited_s = now - string.match(job.entry, '%d+') / 1000
  local limit_s, gone_s = math.min(job.queue_s or args[3], args[3]), tonumber(args[5])
  if waited_s > limit_s then
    return 0, "container '" .. job.container .. "': waited in its queue for more than " .. limit_s .. ' s'
  end
  local gone = waited_s > gone_s and unserved(job.container, gone_s)
  if gone then return 0, gone end
  return limit_s - waited_s
end

-- The same for a running one: its lease is made again if it was lost.
local function running(id, job, args)
  if job.entry then
    local stream, entry = place(job.container, job.entry)
    local lease = grouped(stream, 'XPENDING', stream, 'nodes', entry, entry, '1')[1]
    if not lease then
      hold(id, job.container, job.step, job.entry, job.node)
      job.change = 'held'
    elseif lease[3] / 1000 > tonumber(args[5]) then -- nobody took it over
      return math.huge, unserved(job.container, tonumber(args[5]))
    end
  elseif job.node ~= '' and silent('nodes', job.node, tonumber(args[5])) then
    return 0, 'the node stopped while it streamed'
  end
  return math.huge
end

-- Seconds until it is to be looked at again; or why it must end.
local function looked_at(id, job, args)
  if job.broken then return nil, 'its record is broken' end
  local limit_s = math.min(job.total_s or args[4], args[4])
  local left_s = limit_s - (now - job.created)
  if left_s < 0 then
    return nil, 'not done ' .. limit_s .. ' s after it was accepted; it was ' .. job.state .. ' in step ' .. job.step + 1
  end
  local step_left_s, words = (job.state == 'queued' and queued or running)(id, job, args)
  if words then return nil, words end
  return math.min(args[2], left_s, step_left_s)
end

-- End a job, whatever is left of its record.
local function failed(id, job, words, stopped)
  if job.entry and job.container then dequeue(job.container, job.entry) end
  if job.node then redis.call('SREM', PREFIX .. 'streams:' .. job.node, id) end
  conclude(id, 'failed', job.caller or '', tonumber(job.created) or now, 'error', words, 'failed_in', job.container or '')
  if job.broken then redis.call('ZADD', PREFIX .. 'dead', now, id) end
  if job.state == 'running' then redis.call('PUBLISH', stopped, id) end
end

-- Look at one job; what was changed, and why. Errors are for `one` to catch.
local function look(id, live, stopped, args)
  local job = record(id)
  if not job or (job.state ~= 'queued' and job.state ~= 'running') then
    redis.call('ZREM', live, id)
    return 'forgotten', 'its record is gone, or had ended'
  end
  local again_s, words = looked_at(id, job, args)
  if words then
    failed(id, job, words, stopped)
    return 'failed', words
  end
  redis.call('ZADD', live, now + again_s + 0.001, id)
  return job.change, 'its entry or its lease was lost'
end

local function one(keys, args)
  local ids = redis.call('ZRANGEBYSCORE', keys[1], '-inf', now, 'LIMIT', '0', args[1])
  local reply = { #ids }
  for _, id in ipairs(ids) do
    local fine, change, why = pcall(look, id, keys[1], keys[2], args)
    if not fine then -- it is not what a record is; the others must not wait for it
      change, why = 'failed', 'its record is broken'
      local read, job = pcall(record, id)
      job = read and job or {}
      job.broken = true
      if not pcall(failed, id, job, why, keys[2]) then
        redis.call('ZREM', keys[1], id)
        change = 'forgotten'
      end
    end
    if change then reply[#reply + 1] = { id, change, why } end
  end
  return reply
end
