-- End requests of one tenant: book what each used, give back the rest, write its event, leave a tombstone; once, however
-- often sent. Everything is read and validated before the first write: all of them are booked, or none is.
-- KEYS  stems (meters.lua): 1 request:{t}, 2 running:{t}, 3 reserved:{t}, 4 window:{t}, 5 usage:{t}, 6 events:{t}
-- ARGV  JSON: names of an event's values; usage_s and events_s, how long usage and events are kept; and requests, each a
--       list of
--       id; at, the unix second to book under where the store knows nothing of it; model;
--       whether it may be booked without a record of it; how long its tombstone stays, in seconds;
--       parts of the owners that have usage of their own, '' first; periods to book in (day, month, ...);
--       amounts by counter, all of the request, not the difference; values of its event (none: no event);
--       what it was sold as, <model>:<level>:<tier>:<key> ('': nothing); whether it was admitted and never began
-- Answer, of each: 1 booked, 0 booked before, -1 the store has no record of it and it may not be booked without
local USAGE_TTL = asked.usage_s
local MOST_EVENTS = 100000
local EVENTS_TTL = asked.events_s

-- What is added to each hash of usage, by field.
local hashes = {}
local function hash_of(key, stem, period, at)
  local own = hashes[key]
  if not own then
    own = { key = key, added = {}, seeded = stem and seed(stem, period, at) }
    hashes[key] = own
  end
  return own
end
local function count(own, amounts, tail)
  for counter, amount in pairs(amounts) do
    local field = counter .. tail
    own.added[field] = (own.added[field] or 0) + amount
  end
end
local function book(request, at)
  if not next(request.amounts) then return end
  for _, part in ipairs(request.parts) do
    for _, period in ipairs(request.periods) do
      local stem = KEYS[5] .. part
      local own = hash_of(stem .. ':' .. label(period, at), stem, period, at)
      count(own, request.amounts, '')
      count(own, request.amounts, ':' .. request.model)
    end
  end
  if request.sold ~= '' then count(hash_of(KEYS[5] .. ':sold:' .. label('day', at)), request.amounts, ':' .. request.sold) end
end
-- The pairs that a hash will have; it is new where it had none of them.
local function pairs_of(own)
  local fields, flat, fresh = {}, {}, true
  for field in pairs(own.added) do fields[#fields + 1] = field end
  local before = own.seeded and {} or redis.call('HMGET', own.key, unpack(fields))
  local sums = own.seeded or {}
  for i, field in ipairs(fields) do
    if before[i] then fresh = false end
    if own.seeded then
      sums[field] = (sums[field] or 0) + own.added[field]
    else
      flat[2 * i - 1], flat[2 * i] = field, number(own.key, field, before[i]) + own.added[field]
    end
  end
  for field, value in pairs(sums) do flat[#flat + 1], flat[#flat + 2] = field, value end
  own.flat, own.fresh = flat, fresh
end

local reserved, windows, ended = {}, {}, {}
-- Requests stay in their minute, whatever became of them, unless they never began; tokens that were not used leave it.
local function give_back(name, at, change)
  local key, second = KEYS[4] .. name, text(at)
  local own = windows[key]
  if not own then
    local raw = redis.call('HMGET', key, 'sum', 'from')
    own = { key = key, known = raw[2], sum = number(key, 'sum', raw[1]), from = number(key, 'from', raw[2]), buckets = {} }
    windows[key] = own
  end
  local bucket = own.buckets[second]
  if bucket == nil then
    local raw = redis.call('HMGET', key, second)
    bucket = raw[1] and number(key, second, raw[1])
  end
  if not bucket or not own.known or own.from > at then return end
  local left = math.max(0, bucket + change)
  own.buckets[second], own.sum, own.changed = left, math.max(0, own.sum + left - bucket), true
end
local function release(request, own)
  redis.call('ZSCORE', KEYS[2], request.id)
  for _, part in ipairs(own.parts) do
    reserved[part] = reserved[part] or read_reserved(KEYS[3] .. part)
    add_reserved(reserved[part], own, -1)
    ended[part] = ended[part] or {}
    table.insert(ended[part], request.id)
  end
  for _, name in ipairs(own.windows) do
    local counter = string.match(name, ':(%l+)$')
    local change = request.undone and -own[counter] or 0
    if counter == 'tokens' then
      change = (request.amounts.tokens_in or 0) + (request.amounts.tokens_out or 0) - own.tokens
    end
    if change ~= 0 then give_back(name, own.at, change) end
  end
end

local answers, booked = {}, {}
for i, raw in ipairs(asked.requests) do
  local request = { id = raw[1], at = raw[2], model = raw[3], tombstone_s = raw[5], parts = raw[6], periods = raw[7],
    amounts = raw[8], event = raw[9], sold = raw[10], undone = raw[11] }
  local own = read_request(KEYS[1] .. ':' .. request.id)
  if own and own.state == 'settled' then
    answers[i] = 0
  elseif not own and not raw[4] then
    answers[i] = -1
  else
    answers[i] = 1
    if own then request.at = own.at end
    book(request, request.at)
    if own and own.state == 'live' then release(request, own) end
    booked[#booked + 1] = request
  end
end
for _, own in pairs(hashes) do pairs_of(own) end

local newest, trim = 0, false
for _, request in ipairs(booked) do
  if request.event[1] then
    local words = {}
    for i, name in ipairs(asked.names) do words[2 * i - 1], words[2 * i] = name, request.event[i] end
    redis.call('XADD', KEYS[6], 'MAXLEN', '~', MOST_EVENTS, '*', 'id', request.id, 'at', request.at, unpack(words))
    newest = math.max(newest, request.at)
    trim = trim or string.sub(request.id, 1, 1) == '0'
  end
  -- The record's own fields are all that a tombstone needs to be read.
  redis.call('SET', KEYS[1] .. ':' .. request.id, 'settled ' .. text(request.at) .. ' 0 0 0 0  ', 'EX', request.tombstone_s)
end
if newest > 0 then
  -- A node of the stream holds a hundred entries: to look at the oldest now and then is enough.
  if trim then redis.call('XTRIM', KEYS[6], 'MINID', '~', text((newest - EVENTS_TTL) * 1000)) end
  redis.call('EXPIRE', KEYS[6], EVENTS_TTL)
end
for _, own in pairs(hashes) do
  redis.call('HSET', own.key, unpack(own.flat))
  if own.fresh then redis.call('EXPIRE', own.key, USAGE_TTL) end
end
for part, ids in pairs(ended) do redis.call('ZREM', KEYS[2] .. part, unpack(ids)) end
for _, kept in pairs(reserved) do save_reserved(kept) end
for _, own in pairs(windows) do
  if own.changed then
    local flat = { 'sum', own.sum }
    for second, amount in pairs(own.buckets) do flat[#flat + 1], flat[#flat + 2] = second, amount end
    redis.call('HSET', own.key, unpack(flat))
  end
end
return answers
