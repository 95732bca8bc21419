-- Admit a request, or say which limit forbids it; a refused one costs nothing but a `rejected` counter.
-- KEYS  1 rpm:{t}, 2 tpm:{t}  requests and tokens by unix second
--       3 leases:{t}          running requests: lease id, expiry in unix ms
--       4 lease:{t}:<id>      what this request is booked with
--       5 usage:{t}           stem; :<yyyy-mm-dd> and :<yyyy-mm> of the server's clock are appended (same hash tag)
-- ARGV  1 'admit', or 'look' to change nothing, 2 lease id, 3 lease in ms, 4 model
--       5 requests, 6 images, 7 tokens reserved
--       8 rpm, 9 tpm, 10 concurrency; -1 is unlimited
--       11-16 quotas: requests, images, tokens, each a day and a month; -1 is unlimited
--       17... lease ids that have ended but are not settled yet
-- Answer: { limit that forbids it or '', ms to wait (-1: no wait helps),
--           requests used, ms until none is, tokens used, ms until none is, running, the six quotas used }
local WINDOW = 60
local USAGE_TTL = 400 * 86400
local LEASE_GRACE = 86400

local time = redis.call('TIME')
local now = tonumber(time[1])
local exact = now + tonumber(time[2]) / 1000000
local requests, images, tokens = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])

-- The civil calendar from days since 1970 (H. Hinnant, chrono-compatible low-level date algorithms).
local function date(seconds)
  local z = math.floor(seconds / 86400) + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local day = doy - math.floor((153 * mp + 2) / 5) + 1
  local month = mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  return string.format('%04d-%02d-%02d', year, month, day)
end

-- The current second and the 60 before it: with one bucket fewer, a sliding minute could exceed the limit.
local function window(key, limit, amount)
  if limit < 0 then return 0, 0, 0 end
  local buckets, stale, used, newest = {}, {}, 0, nil
  local flat = redis.call('HGETALL', key)
  for i = 1, #flat, 2 do
    local second, count = tonumber(flat[i]), tonumber(flat[i + 1])
    if second < now - WINDOW or second > now + WINDOW then
      stale[#stale + 1] = flat[i]
    else
      used = used + count
      buckets[#buckets + 1] = { second, count }
      if count > 0 and (not newest or second > newest) then newest = second end
    end
  end
  if #stale > 0 then redis.call('HDEL', key, unpack(stale)) end
  local function until_gone(second) return math.ceil((second + WINDOW + 1 - exact) * 1000) end
  local wait = 0
  if amount > limit then
    wait = -1
  elseif used + amount > limit then
    table.sort(buckets, function(a, b) return a[1] < b[1] end)
    local left = used
    for _, bucket in ipairs(buckets) do
      left = left - bucket[2]
      wait = until_gone(bucket[1])
      if left + amount <= limit then break end
    end
  end
  return used, newest and until_gone(newest) or 0, wait
end

local function count(period, field, amount)
  if amount == 0 then return end
  local key = KEYS[5] .. ':' .. period
  redis.call('HINCRBY', key, field, amount)
  redis.call('HINCRBY', key, field .. ':' .. ARGV[4], amount)
  redis.call('EXPIRE', key, USAGE_TTL)
end

local today = date(now)
local month = string.sub(today, 1, 7)

redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', exact * 1000)
for i = 17, #ARGV do redis.call('ZREM', KEYS[3], ARGV[i]) end
local running = redis.call('ZCARD', KEYS[3])
local rpm_used, rpm_reset, rpm_wait = window(KEYS[1], tonumber(ARGV[8]), requests)
local tpm_used, tpm_reset, tpm_wait = window(KEYS[2], tonumber(ARGV[9]), tokens)
local concurrency = tonumber(ARGV[10])

local quotas = {
  { 'quota_requests_day', today, { 'requests' }, requests }, { 'quota_requests_month', month, { 'requests' }, requests },
  { 'quota_images_day', today, { 'images' }, images }, { 'quota_images_month', month, { 'images' }, images },
  { 'quota_tokens_day', today, { 'tokens_in', 'tokens_out', 'tokens_reserved' }, tokens },
  { 'quota_tokens_month', month, { 'tokens_in', 'tokens_out', 'tokens_reserved' }, tokens },
}
local verdict, wait, quotas_used = '', 0, {}
for i, quota in ipairs(quotas) do
  local limit, used = tonumber(ARGV[10 + i]), 0
  if limit >= 0 then
    for _, value in ipairs(redis.call('HMGET', KEYS[5] .. ':' .. quota[2], unpack(quota[3]))) do
      used = used + (tonumber(value) or 0)
    end
    if quota[4] > 0 and used + quota[4] > limit then
      local midnight = now - now % 86400 + 86400
      while quota[2] == month and string.sub(date(midnight), 1, 7) == month do midnight = midnight + 86400 end
      verdict, wait = quota[1], math.ceil((midnight - exact) * 1000)
    end
  end
  quotas_used[i] = used
end
if verdict == '' then
  if rpm_wait ~= 0 then verdict, wait = 'rpm', rpm_wait
  elseif tpm_wait ~= 0 then verdict, wait = 'tpm', tpm_wait
  elseif concurrency >= 0 and running >= concurrency then verdict, wait = 'concurrency', concurrency == 0 and -1 or 1000
  end
end

if ARGV[1] == 'admit' then
  if verdict ~= '' then
    count(today, 'rejected', 1)
    count(month, 'rejected', 1)
  else
    local lease_ms = tonumber(ARGV[3])
    if tonumber(ARGV[8]) >= 0 then
      redis.call('HINCRBY', KEYS[1], now, requests)
      redis.call('EXPIRE', KEYS[1], WINDOW + 2)
      rpm_used, rpm_reset = rpm_used + requests, math.ceil((now + WINDOW + 1 - exact) * 1000)
    end
    if tonumber(ARGV[9]) >= 0 and tokens > 0 then
      redis.call('HINCRBY', KEYS[2], now, tokens)
      redis.call('EXPIRE', KEYS[2], WINDOW + 2)
      tpm_used, tpm_reset = tpm_used + tokens, math.ceil((now + WINDOW + 1 - exact) * 1000)
    end
    redis.call('ZADD', KEYS[3], math.floor(exact * 1000) + lease_ms, ARGV[2])
    redis.call('EXPIRE', KEYS[3], math.ceil(lease_ms / 1000) + LEASE_GRACE)
    redis.call('HSET', KEYS[4], 'day', today, 'second', now, 'requests', requests, 'images', images, 'tokens', tokens)
    redis.call('EXPIRE', KEYS[4], math.ceil(lease_ms / 1000) + LEASE_GRACE)
    for _, period in ipairs({ today, month }) do
      count(period, 'requests', requests)
      count(period, 'images', images)
      count(period, 'tokens_reserved', tokens)
    end
    running = running + 1
  end
end
return { verdict, wait, rpm_used, rpm_reset, tpm_used, tpm_reset, running, unpack(quotas_used) }
