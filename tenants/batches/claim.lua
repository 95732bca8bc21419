-- Take a batch for a gateway, keep it, or give it back: whose lease has run out lost it.
-- KEYS  1 batch:{t}:<id>, 2 batches:{t}:open
-- ARGV  1 id; 2 the gateway's token; 3 milliseconds of its lease, 0 gives it back
-- Answer: its status; 'held' by another; '' it has ended, or is gone
local raw = redis.call('HMGET', KEYS[1], 'status', 'lease', 'lease_until')
if not raw[1] or not redis.call('ZSCORE', KEYS[2], ARGV[1]) then return '' end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if raw[2] and raw[2] ~= ARGV[2] and tonumber(raw[3]) > now then return 'held' end
redis.call('HSET', KEYS[1], 'lease', ARGV[2], 'lease_until', string.format('%.0f', now + tonumber(ARGV[3])))
return raw[1]
