-- What admit.lua and settle.lua share; scripts.py puts it before them.
--
-- Every key of a tenant is a stem, an owner's part and a rest; all have the tenant's hash tag, so they live in one slot.
--   request:{t}:<id>            'live|lapsed|settled at requests images tokens cost parts windows' of one request
--   running:{t}<part>           requests under way: id, expiry in unix ms
--   reserved:{t}<part>          what they are admitted with: requests, images, tokens, cost
--   window:{t}<part>:<counter>  a sliding minute: unix second, amount; 'sum' of all, 'from' the first second in the sum,
--                               'last' the newest
--   usage:{t}<part>:<period>    what was used, by counter and by counter:<model>
--   usage:{t}:sold:<day>        the same of settled requests, by counter:<model>:<level>:<tier>:<key>
--   events:{t}                  a stream entry for each settled request
-- An owner's part is '' (the tenant), ':key:<id>' or ':model:<id>'.
local MINUTE = 60
local COUNTERS = { 'requests', 'images', 'tokens', 'cost' }
local MOST = 2 ^ 53

local asked = cjson.decode(ARGV[1])

-- A stored counter; an absent one is 0. What is no number ends the script, which has written nothing by then.
local function number(key, field, raw)
  if not raw then return 0 end
  local value = tonumber(raw)
  if not value or value % 1 ~= 0 or value >= MOST or value <= -MOST then
    error({ err = 'BROKENCOUNTER ' .. key .. ' ' .. field .. ' is not a whole number' })
  end
  return value
end
-- For names; as an argument of a command a whole number is written out in full by itself.
local function text(value) return string.format('%.0f', value) end

-- The civil calendar from days since 1970, and back (H. Hinnant, chrono-compatible low-level date algorithms).
local dates = {}
local function civil(days)
  local own = dates[days]
  if own then return own[1], own[2], own[3] end
  local z = days + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  own = { yoe + era * 400 + (month <= 2 and 1 or 0), month, doy - math.floor((153 * mp + 2) / 5) + 1 }
  dates[days] = own
  return own[1], own[2], own[3]
end
local function days_until(year, month, day)
  local y = month <= 2 and year - 1 or year
  local era = math.floor(y / 400)
  local yoe = y - era * 400
  local doy = math.floor((153 * (month > 2 and month - 3 or month + 9) + 2) / 5) + day - 1
  return era * 146097 + yoe * 365 + math.floor(yoe / 4) - math.floor(yoe / 100) + doy - 719468
end

-- The day of the month on which a monthly period begins.
local function anchor(period) return tonumber(string.match(period, '^month@(%d+)$')) or 1 end

-- A function of a period and a unix second that is worked out once for both.
local function once(made)
  local known = {}
  return function(period, at)
    local own = known[period]
    if not own then
      own = {}
      known[period] = own
    end
    own[at] = own[at] or made(period, at)
    return own[at]
  end
end

-- The name of the period that holds a unix second: yyyy-mm-ddThh, yyyy-mm-dd, yyyy-mm, or yyyy-mm@dd where it begins.
local function make_label(period, at)
  local year, month, day = civil(math.floor(at / 86400))
  if period == 'hour' then
    return string.format('%04d-%02d-%02dT%02d', year, month, day, math.floor(at % 86400 / 3600))
  elseif period == 'day' then
    return string.format('%04d-%02d-%02d', year, month, day)
  end
  local begins = anchor(period)
  if day < begins then
    month = month - 1
    if month == 0 then year, month = year - 1, 12 end
  end
  return string.format(begins == 1 and '%04d-%02d' or '%04d-%02d@%02d', year, month, begins)
end
local label = once(make_label)
-- The unix second at which the period that holds another ends.
local function make_end(period, at)
  if period == 'hour' then return at - at % 3600 + 3600 end
  if period == 'day' then return at - at % 86400 + 86400 end
  local year, month, day = civil(math.floor(at / 86400))
  local begins = anchor(period)
  if day >= begins then
    month = month + 1
    if month == 13 then year, month = year + 1, 1 end
  end
  return days_until(year, month, begins) * 86400
end
local ends = once(make_end)

-- A request's record; nil where there is none.
local function read_request(key)
  local raw = redis.call('GET', key)
  if not raw then return nil end
  local state, at, requests, images, tokens, cost, parts, windows =
    string.match(raw, '^(%l+) (%d+) (%d+) (%d+) (%d+) (%d+) (%S*) (%S*)$')
  if not state then -- of before there was money
    state, at, requests, images, tokens, parts, windows =
      string.match(raw, '^(%l+) (%d+) (%d+) (%d+) (%d+) (%S*) (%S*)$')
    cost = '0'
  end
  if not state then error({ err = 'BROKENCOUNTER ' .. key .. ' is no record of a request' }) end
  local own = { state = state, at = tonumber(at), parts = {}, windows = {} }
  own.requests, own.images = tonumber(requests), tonumber(images)
  own.tokens, own.cost = tonumber(tokens), tonumber(cost)
  for part in string.gmatch(parts, '[^,]+') do own.parts[#own.parts + 1] = part == '-' and '' or part end
  for window in string.gmatch(windows, '[^,]+') do own.windows[#own.windows + 1] = window end
  return own
end
local function request_text(state, own)
  local parts = {}
  for i, part in ipairs(own.parts) do parts[i] = part == '' and '-' or part end
  return table.concat({ state, text(own.at), text(own.requests), text(own.images), text(own.tokens),
    text(own.cost), table.concat(parts, ','), table.concat(own.windows, ',') }, ' ')
end

-- What an owner's requests under way are admitted with, as a table that `save_reserved` writes.
local function read_reserved(key)
  local own = { key = key, changed = false }
  local raw = redis.call('HMGET', key, unpack(COUNTERS))
  for i, counter in ipairs(COUNTERS) do own[counter] = number(key, counter, raw[i]) end
  return own
end
local function add_reserved(own, request, sign)
  for _, counter in ipairs(COUNTERS) do
    if request[counter] ~= 0 then
      own[counter], own.changed = math.max(0, own[counter] + sign * request[counter]), true
    end
  end
end
local function save_reserved(own)
  if not own.changed then return end
  local flat = {}
  for i, counter in ipairs(COUNTERS) do flat[2 * i - 1], flat[2 * i] = counter, own[counter] end
  redis.call('HSET', own.key, unpack(flat))
end

-- Usage of an owner in a period that begins on another day than the calendar's and was never counted: the sum of its
-- days. nil where it is counted, or begins with the month.
local function seed(stem, period, at)
  if anchor(period) == 1 or redis.call('EXISTS', stem .. ':' .. label(period, at)) == 1 then return nil end
  local year, month = string.match(label(period, at), '^(%d+)-(%d+)')
  local sums = {}
  for day = days_until(tonumber(year), tonumber(month), anchor(period)), math.floor((ends(period, at) - 1) / 86400) do
    local key = stem .. ':' .. label('day', day * 86400)
    local flat = redis.call('HGETALL', key)
    for i = 1, #flat, 2 do sums[flat[i]] = (sums[flat[i]] or 0) + number(key, flat[i], flat[i + 1]) end
  end
  return sums
end
