-- Admit a request, or say which limit forbids it: read all, judge all, add all or nothing. A refusal writes nothing.
-- KEYS  stems (meters.lua): 1 request:{t}, 2 running:{t}, 3 reserved:{t}, 4 window:{t}, 5 usage:{t}
-- ARGV  JSON: mode ('admit', or 'look' to change nothing), id of the request, lease_ms, and lists of
--       owners: part, suffix of its fields in the tenant's usage ('' where it has usage of its own)
--       meters: counter, amount, least that will do
--       rungs: of each level that the request can be answered at, the best first: what it costs at most, and at least
--       limits: number of the owner from 1, counter, period (now, minute, hour, day, month, month@<day>), most in all,
--               and most of each rung (-1: no end)
--       ended: ids of requests that have ended but are not settled yet
-- Answer: { number of the limit that forbids it, 0 if none, -1 if the request was settled before it was admitted;
--           ms to wait (-1: no wait helps); unix second; tokens granted; cost reserved; number of the rung;
--           number of the limit that forbids the rung above it, 0 if none;
--           then of each limit: used, ms until nothing is (of a period: until it ends) }
local REAP = 16
local LAPSED_TTL = 7 * 86400
local LOOK_AHEAD = 8

local time = redis.call('TIME')
local now = tonumber(time[1])
local exact = now + tonumber(time[2]) / 1000000
local now_ms = math.floor(exact * 1000)

local mode, id, owners, limits, rungs = asked.mode, asked.id, asked.owners, asked.limits, asked.rungs
local amounts, least = { requests = 0, images = 0, tokens = 0, running = mode == 'admit' and 1 or 0 }, {}
for _, meter in ipairs(asked.meters) do amounts[meter[1]], least[meter[1]] = meter[2], meter[3] end
local function least_of(counter, rung)
  if counter == 'cost' then return rungs[rung][2] end
  return least[counter] or amounts[counter]
end

local request_key = KEYS[1] .. ':' .. id
if mode == 'admit' and redis.call('EXISTS', request_key) == 1 then return { -1, 0, now, 0, 0, 1, 0 } end

-- The minute as it is now: the current second and the 60 before it. With one bucket fewer it could exceed the limit.
local function read_window(key)
  local raw = redis.call('HMGET', key, 'sum', 'from', 'last', now)
  local own = { key = key, sum = number(key, 'sum', raw[1]), from = number(key, 'from', raw[2]), stale = {} }
  own.last, own.current = number(key, 'last', raw[3]), number(key, text(now), raw[4])
  local first = now - MINUTE
  -- Nothing of it counts any more; or the server's clock was set back, and nothing would ever leave.
  if not raw[2] or own.last < first or own.last > now + MINUTE then
    own.renew, own.sum, own.from, own.last, own.current = raw[2] and true or false, 0, first, 0, 0
  elseif own.from < first then
    local seconds = {}
    for second = math.max(own.from, first - MINUTE), first - 1 do seconds[#seconds + 1] = second end
    for i, value in ipairs(redis.call('HMGET', key, unpack(seconds))) do
      if value then
        own.sum = own.sum - number(key, text(seconds[i]), value)
        own.stale[#own.stale + 1] = seconds[i]
      end
    end
    own.from = first
  end
  return own
end
-- Milliseconds until so much has left a window.
local function until_gone(own, surplus)
  local second = own.from
  while second <= now do
    local seconds = {}
    for i = 1, LOOK_AHEAD do seconds[i] = second + i - 1 end
    for i, value in ipairs(redis.call('HMGET', own.key, unpack(seconds))) do
      surplus = surplus - number(own.key, text(seconds[i]), value)
      if surplus <= 0 then second = seconds[i] break end
    end
    if surplus <= 0 then break end
    second = second + LOOK_AHEAD
  end
  return math.ceil((second + MINUTE + 1 - exact) * 1000)
end
local function save_window(own, amount)
  if own.renew then redis.call('DEL', own.key) end
  if amount > 0 then own.last, own.sum = now, own.sum + amount end
  local bucket = amount > 0 and { now, own.current + amount } or {}
  redis.call('HSET', own.key, 'sum', own.sum, 'from', own.from, 'last', own.last, unpack(bucket))
  -- After it: a server that is out of memory refuses the first write of a script, and then nothing must be gone.
  if #own.stale > 0 then redis.call('HDEL', own.key, unpack(own.stale)) end
  if own.current == 0 then redis.call('EXPIRE', own.key, 2 * MINUTE) end
end

-- Requests whose process died: their lease ran out and nobody settled them. They give back what they were admitted with.
local reserved, lapsed = {}, {}
local function reserved_of(part)
  if not reserved[part] then reserved[part] = read_reserved(KEYS[3] .. part) end
  return reserved[part]
end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now_ms, 'LIMIT', 0, REAP)) do
  local own = read_request(KEYS[1] .. ':' .. name)
  lapsed[#lapsed + 1] = { name, own }
  if own and own.state == 'live' then
    for _, part in ipairs(own.parts) do add_reserved(reserved_of(part), own, -1) end
  end
end

-- What is used of each limit.
local windows = {}
local function running(key)
  local count = redis.call('ZCOUNT', key, '(' .. now_ms, '+inf')
  if count > 0 and #asked.ended > 0 then
    for _, score in ipairs(redis.call('ZMSCORE', key, unpack(asked.ended))) do
      if score and tonumber(score) > now_ms then count = count - 1 end
    end
  end
  return count
end
local FIELDS = { 'requests', 'images', 'tokens_in', 'tokens_out', 'cost' }
local usage = {}
-- All that an owner has used in a period, by counter.
local function usage_of(owner, period)
  local name = owner[1] .. ' ' .. period
  if usage[name] then return usage[name] end
  local suffix, kept = owner[2], reserved_of(owner[1])
  local stem = KEYS[5] .. (suffix == '' and owner[1] or '')
  local key, seeded, raw = stem .. ':' .. label(period, now), seed(stem, period, now), nil
  local fields = FIELDS
  if suffix ~= '' then
    fields = {}
    for i, field in ipairs(FIELDS) do fields[i] = field .. suffix end
  end
  if seeded then
    raw = {}
    for i, field in ipairs(fields) do raw[i] = seeded[field] or 0 end
  else
    raw = redis.call('HMGET', key, unpack(fields))
  end
  for i, field in ipairs(fields) do raw[i] = number(key, field, raw[i]) end
  usage[name] = {
    requests = raw[1] + kept.requests, images = raw[2] + kept.images, tokens = raw[3] + raw[4] + kept.tokens,
    cost = raw[5] + kept.cost,
  }
  return usage[name]
end
local read = {}
for i, limit in ipairs(limits) do
  local owner, counter, period = owners[limit[1]], limit[2], limit[3]
  local own = { used = 0, reset = 0 }
  read[i] = own
  if period == 'now' then
    own.used = running(KEYS[2] .. owner[1])
  elseif period == 'minute' then
    own.window = read_window(KEYS[4] .. owner[1] .. ':' .. counter)
    windows[#windows + 1] = { own.window, counter, owner[1] }
    own.used = own.window.sum
    if own.used > 0 then own.reset = math.ceil((own.window.last + MINUTE + 1 - exact) * 1000) end
  else
    own.used, own.reset = usage_of(owner, period)[counter], math.ceil((ends(period, now) - exact) * 1000)
  end
end

local function is_rate(limit) return limit[3] == 'now' or limit[3] == 'minute' end
-- Milliseconds until a request fits a limit as it is on a rung: 0 where it does, -1 if it never will.
local function pause_of(i, rung)
  local limit, own = limits[i], read[i]
  local most, wanted = limit[5][rung], least_of(limit[2], rung)
  if most < 0 or wanted == 0 then return 0 end
  if wanted > most then return -1 end
  if own.used + wanted <= most then return 0 end
  if limit[3] == 'now' then return 1000 end
  return own.window and until_gone(own.window, own.used + wanted - most) or own.reset
end
-- The first rung of whose quotas and budgets there is enough; the last where of none there is.
local rung, forced = 1, 0
local function lacking(at)
  for i, limit in ipairs(limits) do
    if not is_rate(limit) and pause_of(i, at) ~= 0 then return i end
  end
  return 0
end
for at = 1, #rungs - 1 do
  local lacks = lacking(at)
  if lacks == 0 then break end
  rung, forced = at + 1, lacks
end
local verdict, wait = 0, 0
for i in ipairs(limits) do
  local pause = pause_of(i, rung)
  -- What no wait helps goes before the longest wait.
  if wait ~= -1 and (pause == -1 or pause > wait) then verdict, wait = i, pause end
end

-- What there is of what may be less: tokens, and by their number money. Where the last rung has no end, what is left of
-- a budget is taken, and nothing after it.
local granted, cost, cheapest = amounts.tokens, rungs[rung][1], rungs[rung][2]
for i, limit in ipairs(limits) do
  local most = limit[5][rung]
  local left = (most < 0 and limit[4] or most) - read[i].used
  if limit[2] == 'tokens' and most >= 0 then
    granted = math.min(granted, math.max(left, least_of('tokens')))
  elseif limit[2] == 'cost' then
    if most >= 0 and left < rungs[rung][1] then
      local spare, dear = least_of('tokens'), rungs[rung][1] - cheapest + 1
      local more = math.floor((left - cheapest - 1) * (amounts.tokens - spare) / dear)
      granted = math.min(granted, spare + math.max(0, more))
    end
    cost = math.min(cost, math.max(0, left))
  end
end

if mode == 'admit' and verdict == 0 then
  local own = { at = now, requests = amounts.requests, images = amounts.images, tokens = granted,
    cost = cost, parts = {}, windows = {} }
  local added = { requests = own.requests, images = own.images, tokens = own.tokens, cost = own.cost }
  local sets = { [''] = true }
  for i, owner in ipairs(owners) do own.parts[i] = owner[1] end
  for _, window in ipairs(windows) do
    if added[window[2]] > 0 then own.windows[#own.windows + 1] = window[3] .. ':' .. window[2] end
  end
  redis.call('SET', request_key, request_text('live', own))
  for _, window in ipairs(windows) do
    if added[window[2]] > 0 then save_window(window[1], added[window[2]]) end
  end
  for _, owner in ipairs(owners) do add_reserved(reserved_of(owner[1]), added, 1) end
  for i, limit in ipairs(limits) do
    if limit[3] == 'now' then sets[owners[limit[1]][1]] = true end
    read[i].used = read[i].used + (limit[2] == 'running' and 1 or added[limit[2]])
    if limit[3] == 'minute' and added[limit[2]] > 0 then read[i].reset = math.ceil((now + MINUTE + 1 - exact) * 1000) end
  end
  for part in pairs(sets) do redis.call('ZADD', KEYS[2] .. part, now_ms + asked.lease_ms, id) end
elseif mode == 'admit' then
  -- A storm of refusals would walk over ever more of the past.
  for _, window in ipairs(windows) do
    if #window[1].stale > LOOK_AHEAD then save_window(window[1], 0) end
  end
end
if mode == 'admit' then
  for _, own in pairs(reserved) do save_reserved(own) end
  for _, pair in ipairs(lapsed) do
    local name, own = pair[1], pair[2]
    if own and own.state == 'live' then
      redis.call('SET', KEYS[1] .. ':' .. name, request_text('lapsed', own), 'EX', LAPSED_TTL)
      for _, part in ipairs(own.parts) do redis.call('ZREM', KEYS[2] .. part, name) end
    end
    redis.call('ZREM', KEYS[2], name)
  end
end

local answer = { verdict, wait, now, granted, cost, rung, forced }
for _, own in ipairs(read) do
  answer[#answer + 1] = own.used
  answer[#answer + 1] = own.reset
end
return answer
