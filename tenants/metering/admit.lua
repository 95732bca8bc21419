-- Admit requests of one tenant under the same limits, in turn, or say of each which limit forbids it: read all once,
-- judge each after those before it, add all of it or nothing, write once. A refusal writes nothing.
-- KEYS  stems (meters.lua): 1 request:{t}, 2 running:{t}, 3 reserved:{t}, 4 window:{t}, 5 usage:{t}
-- ARGV  JSON: look (true: change nothing), and lists of
--       owners: part, suffix of its fields in the tenant's usage ('' where it has usage of its own)
--       limits: number of the owner from 1, counter, period (now, minute, hour, day, month, month@<day>), most in all
--       ended: ids of requests that have ended but are not settled yet
--       requests: id, lease in ms, requests, images, tokens, fewest tokens that will do,
--                 rungs: of each level that it can be answered at, the best first: what it costs at most, and at least
--                 shares: of each limit the most of each rung (-1: no end); absent: all of it
-- Answer, a text of each request:
--         number of the limit that forbids it, 0 if none, -1 if the request was settled before it was admitted;
--         ms to wait (-1: no wait helps); unix second; tokens granted; cost reserved; number of the rung;
--         number of the limit that forbids the rung above it, 0 if none;
--         then of each limit: used, ms until nothing is (of a period: until it ends)
local REAP = 16
local LAPSED_TTL = 7 * 86400
local LOOK_AHEAD = 8

local time = redis.call('TIME')
local now = tonumber(time[1])
local exact = now + tonumber(time[2]) / 1000000
local now_ms = math.floor(exact * 1000)
local minute_ms = math.ceil((now + MINUTE + 1 - exact) * 1000)

local look, owners, limits = asked.look, asked.owners, asked.limits

-- The minute as it is now: the current second and the 60 before it. With one bucket fewer it could exceed the limit.
local function read_window(key)
  local raw = redis.call('HMGET', key, 'sum', 'from', 'last', now)
  local own = { key = key, sum = number(key, 'sum', raw[1]), from = number(key, 'from', raw[2]), stale = {} }
  own.added, own.gone = 0, {}
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
  local wanted, second = surplus, own.from
  while not own.gone[wanted] do
    local seconds = {}
    for i = 1, LOOK_AHEAD do seconds[i] = second + i - 1 end
    local raw = second < now and redis.call('HMGET', own.key, unpack(seconds)) or {}
    for i, at in ipairs(seconds) do
      surplus = surplus - number(own.key, text(at), raw[i])
      -- What these requests add is gone with this second.
      if surplus <= 0 or at >= now then
        own.gone[wanted] = math.ceil((at + MINUTE + 1 - exact) * 1000)
        break
      end
    end
    second = second + LOOK_AHEAD
  end
  return own.gone[wanted]
end
local function save_window(own)
  -- Without it a storm of refusals would walk over ever more of the past.
  if own.added == 0 and #own.stale <= LOOK_AHEAD then return end
  if own.renew then redis.call('DEL', own.key) end
  local bucket = own.added > 0 and { now, own.current + own.added } or {}
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
-- How much of a limit a request may use on a rung.
local function most_of(request, i, rung) return request.shares and request.shares[i][rung] or limits[i][4] end
-- Milliseconds until a request fits a limit as it is on a rung: 0 where it does, -1 if it never will.
local function pause_of(request, i, rung)
  local limit, own, wanted = limits[i], read[i], nil
  if limit[2] == 'cost' then wanted = request.rungs[rung][2] else wanted = request.least[limit[2]] end
  local most = most_of(request, i, rung)
  if most < 0 or wanted == 0 then return 0 end
  if wanted > most then return -1 end
  if own.used + wanted <= most then return 0 end
  if limit[3] == 'now' then return 1000 end
  return own.window and until_gone(own.window, own.used + wanted - most) or own.reset
end
local function lacking(request, rung)
  for i, limit in ipairs(limits) do
    if not is_rate(limit) and pause_of(request, i, rung) ~= 0 then return i end
  end
  return 0
end
local function judge(request)
  -- The first rung of whose quotas and budgets there is enough; the last where of none there is.
  local rung, forced, verdict, wait = 1, 0, 0, 0
  for at = 1, #request.rungs - 1 do
    local lacks = lacking(request, at)
    if lacks == 0 then break end
    rung, forced = at + 1, lacks
  end
  for i in ipairs(limits) do
    local pause = pause_of(request, i, rung)
    -- What no wait helps goes before the longest wait.
    if wait ~= -1 and (pause == -1 or pause > wait) then verdict, wait = i, pause end
  end
  request.rung, request.forced, request.verdict, request.wait = rung, forced, verdict, wait
end
-- What there is of what may be less: tokens, and by their number money. Where the last rung has no end, what is left of
-- a budget is taken, and nothing after it.
local function grant(request)
  local dearest, cheapest = request.rungs[request.rung][1], request.rungs[request.rung][2]
  local granted, cost, spare = request.tokens, dearest, request.least.tokens
  for i, limit in ipairs(limits) do
    local most = most_of(request, i, request.rung)
    local left = (most < 0 and limit[4] or most) - read[i].used
    if limit[2] == 'tokens' and most >= 0 then
      granted = math.min(granted, math.max(left, spare))
    elseif limit[2] == 'cost' then
      if most >= 0 and left < dearest then
        local more = math.floor((left - cheapest - 1) * (request.tokens - spare) / (dearest - cheapest + 1))
        granted = math.min(granted, spare + math.max(0, more))
      end
      cost = math.min(cost, math.max(0, left))
    end
  end
  request.tokens, request.cost = granted, cost
end

local parts, sets, admitted = {}, { [''] = {} }, {}
for i, owner in ipairs(owners) do parts[i] = owner[1] end
for _, limit in ipairs(limits) do
  if limit[3] == 'now' then sets[owners[limit[1]][1]] = {} end
end
local function add(request)
  request.at, request.parts, request.windows = now, parts, {}
  for _, entry in ipairs(windows) do
    local window, amount = entry[1], request[entry[2]]
    if amount > 0 then
      request.windows[#request.windows + 1] = entry[3] .. ':' .. entry[2]
      window.last, window.sum, window.added = now, window.sum + amount, window.added + amount
    end
  end
  for _, part in ipairs(parts) do add_reserved(reserved_of(part), request, 1) end
  for i, limit in ipairs(limits) do
    local own, amount = read[i], limit[2] == 'running' and 1 or request[limit[2]]
    own.used = own.used + amount
    if limit[3] == 'minute' and amount > 0 then own.reset = minute_ms end
  end
  for _, set in pairs(sets) do set[#set + 1], set[#set + 2] = now_ms + request.lease_ms, request.id end
  admitted[#admitted + 1] = request
end
-- Numbers beyond what Lua writes out by itself.
local function written(value) return value < 1e14 and value or text(value) end
local function answer_of(request)
  local answer = { request.verdict, request.wait, now, written(request.tokens), written(request.cost), request.rung,
    request.forced }
  for _, own in ipairs(read) do
    answer[#answer + 1], answer[#answer + 2] = written(own.used), own.reset
  end
  return table.concat(answer, ' ')
end

local answers = {}
for number_of, raw in ipairs(asked.requests) do
  local request = { id = raw[1], lease_ms = raw[2], requests = raw[3], images = raw[4], tokens = raw[5], rungs = raw[7],
    shares = raw[8], cost = 0, rung = 1, forced = 0, wait = 0, verdict = 0 }
  request.least = { requests = raw[3], images = raw[4], tokens = raw[6], running = look and 0 or 1 }
  if not look and redis.call('EXISTS', KEYS[1] .. ':' .. request.id) == 1 then
    request.verdict = -1
  else
    judge(request)
    grant(request)
    if not look and request.verdict == 0 then add(request) end
  end
  answers[number_of] = answer_of(request)
end
if look then return answers end

for _, request in ipairs(admitted) do
  redis.call('SET', KEYS[1] .. ':' .. request.id, request_text('live', request))
end
for _, entry in ipairs(windows) do save_window(entry[1]) end
for part, set in pairs(sets) do
  if #set > 0 then redis.call('ZADD', KEYS[2] .. part, unpack(set)) end
end
for _, own in pairs(reserved) do save_reserved(own) end
for _, pair in ipairs(lapsed) do
  local name, own = pair[1], pair[2]
  if own and own.state == 'live' then
    redis.call('SET', KEYS[1] .. ':' .. name, request_text('lapsed', own), 'EX', LAPSED_TTL)
    for _, part in ipairs(own.parts) do redis.call('ZREM', KEYS[2] .. part, name) end
  end
  redis.call('ZREM', KEYS[2], name)
end
return answers
