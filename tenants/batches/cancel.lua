-- Ask for a batch's end; the gateway that has it ends it. One that writes its files already, or has ended, is let be.
-- KEYS  1 batch:{t}:<id>
-- ARGV  1 unix second
-- Answer: 1 it will end, 0 it is let be
local status = redis.call('HMGET', KEYS[1], 'status')[1]
if status ~= 'validating' and status ~= 'in_progress' then return 0 end
redis.call('HSET', KEYS[1], 'status', 'cancelling', 'cancelling_at', ARGV[1])
return 1
