-- Note when an API key was last used, unless its record is gone.
-- KEYS  1 apikey:<sha256>
-- ARGV  1 the time, as the record writes it
-- Answer: 1 if noted, else 0
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'last_used', ARGV[1])
return 1
