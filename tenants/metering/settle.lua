-- End a request: book what it used, give back the rest, write its event, leave a tombstone; once, however often sent.
-- Everything is read and validated before the first write.
-- KEYS  stems (meters.lua): 1 request:{t}, 2 running:{t}, 3 reserved:{t}, 4 window:{t}, 5 usage:{t}, 6 events:{t}
-- ARGV  JSON: id of the request; at, the unix second to book under where the store knows nothing of it; model;
--       may_book without a record of it; tombstone_s, how long its tombstone stays; and
--       parts: of the owners that have usage of their own, '' first
--       periods: to book in (day, month, ...)
--       amounts: by counter; all of the request, not the difference
--       event: names and values of its event in turns (none: no event)
--       undone: whether it was admitted and never began
--       sold: what it was sold as, <model>:<level>:<tier>:<key> ('': nothing)
-- Answer: 1 booked, 0 booked before, -1 the store has no record of it and it may not be booked without
local USAGE_TTL = 400 * 86400
local MOST_EVENTS = 100000
local EVENTS_TTL = 35 * 86400

local id, at, event, amounts = asked.id, asked.at, asked.event, asked.amounts

local request_key = KEYS[1] .. ':' .. id
local own = read_request(request_key)
if own and own.state == 'settled' then return 0 end
if not own and not asked.may_book then return -1 end
local live = own and own.state == 'live'
if own then at = own.at end

local function fields_of(tails)
  local fields, values = {}, {}
  for counter, amount in pairs(amounts) do
    for _, tail in ipairs(tails) do
      fields[#fields + 1], values[#values + 1] = counter .. tail, amount
    end
  end
  return fields, values
end
-- A hash, the pairs that it will have, and whether it is new.
local function added(key, fields, values, seeded)
  local flat, fresh, before = {}, true, seeded and {} or redis.call('HMGET', key, unpack(fields))
  local sums = seeded or {}
  for i, field in ipairs(fields) do
    if before[i] then fresh = false end
    if seeded then
      sums[field] = (sums[field] or 0) + values[i]
    else
      flat[2 * i - 1], flat[2 * i] = field, number(key, field, before[i]) + values[i]
    end
  end
  for field, value in pairs(sums) do flat[#flat + 1], flat[#flat + 2] = field, value end
  return { key, flat, fresh }
end
local hashes = {}
if next(amounts) then
  local fields, values = fields_of({ '', ':' .. asked.model })
  for _, part in ipairs(asked.parts) do
    for _, period in ipairs(asked.periods) do
      local stem = KEYS[5] .. part
      hashes[#hashes + 1] = added(stem .. ':' .. label(period, at), fields, values, seed(stem, period, at))
    end
  end
  if asked.sold ~= '' then
    fields, values = fields_of({ ':' .. asked.sold })
    hashes[#hashes + 1] = added(KEYS[5] .. ':sold:' .. label('day', at), fields, values)
  end
end

local reserved, windows = {}, {}
if live then
  redis.call('ZSCORE', KEYS[2], id)
  for _, part in ipairs(own.parts) do
    local kept = read_reserved(KEYS[3] .. part)
    add_reserved(kept, own, -1)
    reserved[#reserved + 1] = kept
  end
  -- Requests stay in their minute, whatever became of them, unless they never began; tokens not used leave it.
  for _, name in ipairs(own.windows) do
    local counter = string.match(name, ':(%l+)$')
    local change = 0
    if counter == 'tokens' then
      change = (amounts.tokens_in or 0) + (amounts.tokens_out or 0) - own.tokens
    elseif asked.undone then
      change = -own[counter]
    end
    if change ~= 0 then
      local key, second = KEYS[4] .. name, text(own.at)
      local raw = redis.call('HMGET', key, 'sum', 'from', second)
      if raw[3] and number(key, 'from', raw[2]) <= own.at then
        local bucket = number(key, second, raw[3])
        local left = math.max(0, bucket + change)
        windows[#windows + 1] = { key, math.max(0, number(key, 'sum', raw[1]) + left - bucket), second, left }
      end
    end
  end
end

if event[1] then
  redis.call('XADD', KEYS[6], 'MAXLEN', '~', MOST_EVENTS, '*', 'id', id, 'at', at, unpack(event))
end
-- The record's own fields are all that a tombstone needs to be read.
redis.call('SET', request_key, request_text('settled', 
  { at = at, requests = 0, images = 0, tokens = 0, cost = 0, parts = {}, windows = {} }),
  'EX', asked.tombstone_s)
if event[1] then
  -- A node of the stream holds a hundred entries: to look at the oldest now and then is enough.
  if string.sub(id, 1, 1) == '0' then redis.call('XTRIM', KEYS[6], 'MINID', '~', text((at - EVENTS_TTL) * 1000)) end
  redis.call('EXPIRE', KEYS[6], EVENTS_TTL)
end
for _, hash in ipairs(hashes) do
  redis.call('HSET', hash[1], unpack(hash[2]))
  if hash[3] then redis.call('EXPIRE', hash[1], USAGE_TTL) end
end
if live then
  for _, part in ipairs(own.parts) do redis.call('ZREM', KEYS[2] .. part, id) end
  for _, kept in ipairs(reserved) do save_reserved(kept) end
  for _, window in ipairs(windows) do redis.call('HSET', window[1], 'sum', window[2], window[3], window[4]) end
end
return 1
