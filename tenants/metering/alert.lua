-- Raise an alert unless it was: of many gateways that see the same one does. All of its deliveries are due at once.
-- KEYS  1 the mark that it was raised, 2 its message, 3 what is due
-- ARGV  1 seconds until it may be raised again, 2 the message, 3 seconds to keep it, 4 unix second, then the deliveries
-- Answer: 1 raised, 0 it was before
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('SET', KEYS[1], '1', 'EX', ARGV[1])
redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3])
for i = 5, #ARGV do redis.call('ZADD', KEYS[3], ARGV[4], ARGV[i]) end
return 1
