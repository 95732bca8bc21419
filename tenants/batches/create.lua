-- Enter a batch, unless its tenant has too many open. The oldest of those that have ended make room.
-- KEYS  1 batch:{t}:<id>, 2 batches:{t}, 3 batches:{t}:open
-- ARGV  1 id; 2 unix second; 3 most open; 4 most kept; 5 seconds that it is kept; 6 stem of a batch's key; 7... fields
-- Answer: 1 entered, 0 too many open
local id, keep = ARGV[1], ARGV[5]
if redis.call('ZCOUNT', KEYS[3], '-inf', '+inf') >= tonumber(ARGV[3]) then return 0 end
local over = redis.call('ZCOUNT', KEYS[2], '-inf', '+inf') + 1 - tonumber(ARGV[4])
if over > 0 then
  for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '+inf', 'LIMIT', 0, over + tonumber(ARGV[3]))) do
    if over > 0 and not redis.call('ZSCORE', KEYS[3], old) then
      redis.call('DEL', ARGV[6] .. old)
      redis.call('ZREM', KEYS[2], old)
      over = over - 1
    end
  end
end
redis.call('HSET', KEYS[1], unpack(ARGV, 7))
redis.call('ZADD', KEYS[2], ARGV[2], id)
redis.call('ZADD', KEYS[3], ARGV[2], id)
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, keep) end
return 1
