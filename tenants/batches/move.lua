-- Write fields of a batch, its status among them, by the gateway that has it.
-- KEYS  1 batch:{t}:<id>, 2 batches:{t}:open, 3 batch:{t}:<id>:results
-- ARGV  1 id; 2 the gateway's token; 3 the status that it must have, '' any; 4 1: with this it has ended; 5... fields
-- Answer: 1 written, 0 it is another gateway's, of another status, or gone
local raw = redis.call('HMGET', KEYS[1], 'status', 'lease')
if not raw[1] or raw[2] ~= ARGV[2] or not redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 0 end
if ARGV[3] ~= '' and raw[1] ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 5))
if ARGV[4] == '1' then
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('DEL', KEYS[3])
end
return 1
