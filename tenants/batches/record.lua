-- Note the result of one line, once, by the gateway that has the batch.
-- KEYS  1 batch:{t}:<id>, 2 batch:{t}:<id>:results
-- ARGV  1 the gateway's token; 2 the line's number; 3 completed or failed; 4 the result; 5 seconds that it is kept
-- Answer: the batch's status; '' it is another gateway's, or gone: nothing was noted
local raw = redis.call('HMGET', KEYS[1], 'status', 'lease')
if not raw[1] or raw[2] ~= ARGV[1] then return '' end
if redis.call('HMGET', KEYS[2], ARGV[2])[1] then return raw[1] end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[4])
redis.call('EXPIRE', KEYS[2], ARGV[5])
redis.call('HINCRBY', KEYS[1], ARGV[3], 1)
redis.call('HINCRBY', KEYS[1], 'bytes', #ARGV[4])
return raw[1]
