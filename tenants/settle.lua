-- End a request: release its lease, return what it did not use, book what it did; once, however often it is sent.
-- KEYS  1 lease:{t}:<id>  as in admit.lua
--       2 held:{t}:<id>  marks a settlement that was booked without a lease
--       3 tpm:{t}, 4 leases:{t}, 5 usage:{t}  as in admit.lua
--       6-8 as 3-5, of an API key that has limits of its own; absent for others
-- ARGV  1 lease id, 2 model, 3 requests, 4 images, 5 tokens in, 6 tokens out: all of the request, not the difference
--       7 '' or the UTC day to book under where there is no lease: the request was admitted while the store was away
-- Answer: 1 booked, 0 booked before, -1 there is no lease and no day
local USAGE_TTL = 400 * 86400
local HELD_TTL = 7 * 86400

local requests, images = tonumber(ARGV[3]), tonumber(ARGV[4])
local tokens_in, tokens_out = tonumber(ARGV[5]), tonumber(ARGV[6])

local function book(stem, day, amounts)
  for _, period in ipairs({ day, string.sub(day, 1, 7) }) do
    local key = stem .. ':' .. period
    for field, amount in pairs(amounts) do
      if amount ~= 0 then
        redis.call('HINCRBY', key, field, amount)
        redis.call('HINCRBY', key, field .. ':' .. ARGV[2], amount)
        redis.call('EXPIRE', key, USAGE_TTL)
      end
    end
  end
end

for scope = 3, #KEYS, 3 do redis.call('ZREM', KEYS[scope + 1], ARGV[1]) end
local lease = redis.call('HMGET', KEYS[1], 'day', 'second', 'requests', 'images', 'tokens')
if ARGV[7] ~= '' and not redis.call('SET', KEYS[2], '1', 'NX', 'EX', HELD_TTL) then return 0 end
if not lease[1] then
  if ARGV[7] == '' then return -1 end
  for scope = 3, #KEYS, 3 do
    book(KEYS[scope + 2], ARGV[7],
      { requests = requests, images = images, tokens_in = tokens_in, tokens_out = tokens_out })
  end
  return 1
end
redis.call('DEL', KEYS[1])
local reserved = tonumber(lease[5])
local change = tokens_in + tokens_out - reserved
for scope = 3, #KEYS, 3 do
  if change ~= 0 and redis.call('HEXISTS', KEYS[scope], lease[2]) == 1 then
    redis.call('HINCRBY', KEYS[scope], lease[2], change)
  end
  book(KEYS[scope + 2], lease[1], {
    requests = requests - tonumber(lease[3]),
    images = images - tonumber(lease[4]),
    tokens_reserved = -reserved,
    tokens_in = tokens_in,
    tokens_out = tokens_out,
  })
end
return 1
