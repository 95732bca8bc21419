-- Admit a request, or say which limit forbids it; a refused one costs nothing but a `rejected` counter.
-- KEYS  1 rpm:{t}, 2 tpm:{t}  requests and tokens by unix second
--       3 leases:{t}          running requests: lease id, expiry in unix ms
--       4 usage:{t}           stem; :<yyyy-mm-dd> and :<yyyy-mm> of the server's clock are appended (same hash tag)
--       5 lease:{t}:<id>      what this request is booked with
--       6-9 as 1-4, of an API key that has limits of its own; absent for others
-- ARGV  1 'admit', or 'look' to change nothing, 2 lease id, 3 lease in ms, 4 model
--       5 requests, 6 images, 7 tokens reserved
--       8 rpm, 9 tpm, 10 concurrency; -1 is unlimited
--       11-16 quotas: requests, images, tokens, each a day and a month; -1 is unlimited
--       17-25 as 8-16, where there are keys 6-9
--       then lease ids that have ended but are not settled yet
-- Answer: { limit that forbids it or '', 1 if the tenant's or 2 if the key's, ms to wait (-1: no wait helps),
--           requests used, ms until none is, tokens used, ms until none is, running, the six quotas used,
--           and these eleven again of the key }
local WINDOW = 60
local USAGE_TTL = 400 * 86400
local LEASE_GRACE = 7 * 86400
local LIMITS = 9

local time = redis.call('TIME')
local now = tonumber(time[1])
local exact = now + tonumber(time[2]) / 1000000
local first_ended
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

local today = date(now)
local month = string.sub(today, 1, 7)
local TOKENS = { 'tokens_in', 'tokens_out', 'tokens_reserved' }
local QUOTAS = {
  { 'quota_requests_day', today, { 'requests' }, requests }, { 'quota_requests_month', month, { 'requests' }, requests },
  { 'quota_images_day', today, { 'images' }, images }, { 'quota_images_month', month, { 'images' }, images },
  { 'quota_tokens_day', today, TOKENS, tokens }, { 'quota_tokens_month', month, TOKENS, tokens },
}

local function count(scope, period, field, amount)
  if amount == 0 then return end
  local key = scope.usage .. ':' .. period
  redis.call('HINCRBY', key, field, amount)
  redis.call('HINCRBY', key, field .. ':' .. ARGV[4], amount)
  redis.call('EXPIRE', key, USAGE_TTL)
end

local function until_midnight(period)
  local midnight = now - now % 86400 + 86400
  while period == month and string.sub(date(midnight), 1, 7) == month do midnight = midnight + 86400 end
  return math.ceil((midnight - exact) * 1000)
end

-- What a scope (the tenant, or one key) has used, and the limit of it that forbids the request.
local function judge(scope)
  scope.requests, scope.requests_reset, scope.rpm_wait = window(scope.rpm, scope.limit(1), requests)
  scope.tokens, scope.tokens_reset, scope.tpm_wait = window(scope.tpm, scope.limit(2), tokens)
  redis.call('ZREMRANGEBYSCORE', scope.leases, '-inf', exact * 1000)
  for i = first_ended, #ARGV do redis.call('ZREM', scope.leases, ARGV[i]) end
  scope.running = redis.call('ZCARD', scope.leases)
  scope.verdict, scope.wait, scope.quotas = '', 0, {}
  for i, quota in ipairs(QUOTAS) do
    local limit, used = scope.limit(3 + i), 0
    if limit >= 0 then
      for _, value in ipairs(redis.call('HMGET', scope.usage .. ':' .. quota[2], unpack(quota[3]))) do
        used = used + (tonumber(value) or 0)
      end
      if quota[4] > 0 and used + quota[4] > limit then
        scope.verdict, scope.wait = quota[1], until_midnight(quota[2])
      end
    end
    scope.quotas[i] = used
  end
  if scope.verdict ~= '' then return end
  local concurrency = scope.limit(3)
  if scope.rpm_wait ~= 0 then scope.verdict, scope.wait = 'rpm', scope.rpm_wait
  elseif scope.tpm_wait ~= 0 then scope.verdict, scope.wait = 'tpm', scope.tpm_wait
  elseif concurrency >= 0 and scope.running >= concurrency then
    scope.verdict, scope.wait = 'concurrency', concurrency == 0 and -1 or 1000
  end
end

local function book(scope, lease_ms)
  local reset = math.ceil((now + WINDOW + 1 - exact) * 1000)
  if scope.limit(1) >= 0 then
    redis.call('HINCRBY', scope.rpm, now, requests)
    redis.call('EXPIRE', scope.rpm, WINDOW + 2)
    scope.requests, scope.requests_reset = scope.requests + requests, reset
  end
  if scope.limit(2) >= 0 and tokens > 0 then
    redis.call('HINCRBY', scope.tpm, now, tokens)
    redis.call('EXPIRE', scope.tpm, WINDOW + 2)
    scope.tokens, scope.tokens_reset = scope.tokens + tokens, reset
  end
  redis.call('ZADD', scope.leases, math.floor(exact * 1000) + lease_ms, ARGV[2])
  redis.call('EXPIRE', scope.leases, math.ceil(lease_ms / 1000) + LEASE_GRACE)
  for _, period in ipairs({ today, month }) do
    count(scope, period, 'requests', requests)
    count(scope, period, 'images', images)
    count(scope, period, 'tokens_reserved', tokens)
  end
  scope.running = scope.running + 1
end

local function scope_of(first_key, usage_key, first_limit)
  return {
    rpm = KEYS[first_key], tpm = KEYS[first_key + 1], leases = KEYS[first_key + 2], usage = KEYS[usage_key],
    limit = function(i) return tonumber(ARGV[first_limit + i - 1]) end,
  }
end

local scopes = { scope_of(1, 4, 8) }
if #KEYS > 5 then scopes[2] = scope_of(6, 9, 8 + LIMITS) end
first_ended = 8 + LIMITS * #scopes
local verdict, whose, wait = '', 0, 0
for i, scope in ipairs(scopes) do
  judge(scope)
  if verdict == '' and scope.verdict ~= '' then verdict, whose, wait = scope.verdict, i, scope.wait end
end
if ARGV[1] == 'admit' then
  local lease_ms = tonumber(ARGV[3])
  for _, scope in ipairs(scopes) do
    if verdict == '' then
      book(scope, lease_ms)
    else
      count(scope, today, 'rejected', 1)
      count(scope, month, 'rejected', 1)
    end
  end
  if verdict == '' then
    redis.call('HSET', KEYS[5], 'day', today, 'second', now, 'requests', requests, 'images', images, 'tokens', tokens)
    redis.call('EXPIRE', KEYS[5], math.ceil(lease_ms / 1000) + LEASE_GRACE)
  end
end
local answer = { verdict, whose, wait }
for _, scope in ipairs(scopes) do
  for _, value in ipairs({ scope.requests, scope.requests_reset, scope.tokens, scope.tokens_reset, scope.running }) do
    answer[#answer + 1] = value
  end
  for _, used in ipairs(scope.quotas) do answer[#answer + 1] = used end
end
return answer
