-- End a request: book what it used, give back the rest, write its event, leave a tombstone; once, however often sent.
-- Everything is read and validated before the first write.
-- KEYS  stems (meters.lua): 1 request:{t}, 2 running:{t}, 3 reserved:{t}, 4 window:{t}, 5 usage:{t}, 6 events:{t}
-- ARGV  request id; unix second to book under where the store knows nothing of it; model;
--       1 if it may be booked without a record of it, else 0; seconds that the tombstone stays;
--       then lists, each with its length before it:
--       parts of the owners that have usage of their own ('' first), periods to book (day, month, ...),
--       counters: name, amount; all of the request, not the difference
--       fields of its event (none: no event), and what it was sold as: <model>:<level>:<tier>:<key> (or none)
-- Answer: 1 booked, 0 booked before, -1 the store has no record of it and it may not be booked without
local USAGE_TTL = 400 * 86400
local MOST_EVENTS = 100000
local EVENTS_TTL = 35 * 86400

local id, at, model = take(), tonumber(take()), take()
local may_book, tombstone_s = take() == '1', tonumber(take())
local parts, periods, counters, event, sold = take_rows(1), take_rows(1), take_rows(2), take_rows(2), take_rows(1)
local amounts = { requests = 0, images = 0, tokens_in = 0, tokens_out = 0 }
for _, row in ipairs(counters) do amounts[row[1]] = tonumber(row[2]) end

local request_key = KEYS[1] .. ':' .. id
local own = read_request(request_key)
if own and own.state == 'settled' then return 0 end
if not own and not may_book then return -1 end
local live = own and own.state == 'live'
if own then at = own.at end

-- What a hash will hold; `names` are tails of field names.
local function add(key, names, seeded)
  local fields, values, sums = {}, {}, seeded or {}
  for counter, amount in pairs(amounts) do
    if amount ~= 0 then
      for _, name in ipairs(names) do
        fields[#fields + 1], values[#values + 1] = counter .. name, amount
      end
    end
  end
  if #fields == 0 then return nil end
  local before = seeded and {} or redis.call('HMGET', key, unpack(fields))
  local fresh = true
  for i, field in ipairs(fields) do
    if before[i] then fresh = false end
    sums[field] = (seeded and sums[field] or number(key, field, before[i])) + values[i]
  end
  local flat = {}
  for field, value in pairs(sums) do flat[#flat + 1], flat[#flat + 2] = field, text(value) end
  return { key, flat, fresh }
end
local hashes = {}
for _, part in ipairs(parts) do
  for _, period in ipairs(periods) do
    local stem = KEYS[5] .. part[1]
    hashes[#hashes + 1] = add(stem .. ':' .. label(period[1], at), { '', ':' .. model }, seed(stem, period[1], at))
  end
end
if sold[1] then hashes[#hashes + 1] = add(KEYS[5] .. ':sold:' .. label('day', at), { ':' .. sold[1][1] }) end

local reserved, windows = {}, {}
if live then
  redis.call('ZSCORE', KEYS[2], id)
  for _, part in ipairs(own.parts) do
    local kept = read_reserved(KEYS[3] .. part)
    add_reserved(kept, own, -1)
    reserved[#reserved + 1] = kept
  end
  -- Requests stay in their minute, whatever became of them; tokens that were not used leave it.
  local change = amounts.tokens_in + amounts.tokens_out - own.tokens
  for _, name in ipairs(own.windows) do
    if change ~= 0 and string.sub(name, -7) == ':tokens' then
      local key, second = KEYS[4] .. name, text(own.at)
      local raw = redis.call('HMGET', key, 'sum', 'from', second)
      if raw[3] and number(key, 'from', raw[2]) <= own.at then
        local bucket = number(key, second, raw[3])
        local left = math.max(0, bucket + change)
        windows[#windows + 1] = { key, text(math.max(0, number(key, 'sum', raw[1]) + left - bucket)), second, text(left) }
      end
    end
  end
end

if event[1] then
  local fields = { 'id', id, 'at', text(at) }
  for _, row in ipairs(event) do fields[#fields + 1], fields[#fields + 2] = row[1], row[2] end
  redis.call('XADD', KEYS[6], 'MAXLEN', '~', MOST_EVENTS, '*', unpack(fields))
end
-- The record's own fields are all that a tombstone needs to be read.
redis.call('SET', request_key, request_text('settled', { at = at, requests = 0, images = 0, tokens = 0, parts = {}, windows = {} }),
  'EX', tombstone_s)
if event[1] then
  redis.call('XTRIM', KEYS[6], 'MINID', '~', text((at - EVENTS_TTL) * 1000))
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
