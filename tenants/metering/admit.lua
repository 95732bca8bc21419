-- Admit a request, or say which limit forbids it: read all, judge all, add all or nothing. A refusal writes nothing.
-- KEYS  stems (meters.lua): 1 request:{t}, 2 running:{t}, 3 reserved:{t}, 4 window:{t}, 5 usage:{t}
-- ARGV  JSON: mode ('admit', or 'look' to change nothing), id of the request, lease_ms, and lists of
--       owners: part, suffix of its fields in the tenant's usage ('' where it has usage of its own)
--       meters: counter, amount, least that will do
--       limits: number of the owner from 1, counter, period (now, minute, hour, day, month, month@<day>), most
--       ended: ids of requests that have ended but are not settled yet
-- Answer: { number of the limit that forbids it, 0 if none, -1 if the request was settled before it was admitted;
--           ms to wait (-1: no wait helps); unix second; tokens granted;
--           then of each limit: used, ms until nothing is (of a period: until it ends) }
local REAP = 16
local LAPSED_TTL = 7 * 86400
local LOOK_AHEAD = 8

local time = redis.call('TIME')
local now = tonumber(time[1])
local exact = now + tonumber(time[2]) / 1000000
local now_ms = math.floor(exact * 1000)

local mode, id, owners, limits = asked.mode, asked.id, asked.owners, asked.limits
local amounts, least = { requests = 0, images = 0, tokens = 0, running = mode == 'admit' and 1 or 0 }, {}
for _, meter in ipairs(asked.meters) do amounts[meter[1]], least[meter[1]] = meter[2], meter[3] end
local function least_of(counter) return least[counter] or amounts[counter] end

local request_key = KEYS[1] .. ':' .. id
if mode == 'admit' and redis.call('EXISTS', request_key) == 1 then return { -1, 0, now, 0 } end

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
local FIELDS = { 'requests', 'images', 'tokens_in', 'tokens_out' }
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
  }
  return usage[name]
end
local read, verdict, wait = {}, 0, 0
for i, limit in ipairs(limits) do
  local owner, counter, period, most = owners[limit[1]], limit[2], limit[3], limit[4]
  local own = { most = most, counter = counter, used = 0, reset = 0 }
  read[i] = own
  local wanted, pause = least_of(counter), 0
  if period == 'now' then
    own.used = running(KEYS[2] .. owner[1])
    if own.used + wanted > most then pause = 1000 end
  elseif period == 'minute' then
    local window = read_window(KEYS[4] .. owner[1] .. ':' .. counter)
    windows[#windows + 1] = { window, counter, owner[1] }
    own.used = window.sum
    if own.used > 0 then own.reset = math.ceil((window.last + MINUTE + 1 - exact) * 1000) end
    if wanted > 0 and wanted <= most and own.used + wanted > most then
      pause = until_gone(window, own.used + wanted - most)
    end
  else
    own.used, own.reset = usage_of(owner, period)[counter], math.ceil((ends(period, now) - exact) * 1000)
    if own.used + wanted > most then pause = own.reset end
  end
  if wanted > 0 and wanted > most then pause = -1 elseif wanted == 0 then pause = 0 end
  -- What no wait helps goes before the longest wait.
  if wait ~= -1 and (pause == -1 or pause > wait) then verdict, wait = i, pause end
end

local granted = amounts.tokens
for _, own in ipairs(read) do
  if own.counter == 'tokens' then granted = math.min(granted, math.max(own.most - own.used, least_of('tokens'))) end
end

if mode == 'admit' and verdict == 0 then
  local own = { at = now, requests = amounts.requests, images = amounts.images, tokens = granted, parts = {}, windows = {} }
  local added = { requests = own.requests, images = own.images, tokens = own.tokens }
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

local answer = { verdict, wait, now, granted }
for _, own in ipairs(read) do
  answer[#answer + 1] = own.used
  answer[#answer + 1] = own.reset
end
return answer
