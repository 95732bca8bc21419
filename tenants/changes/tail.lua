-- The end of the audit log and the server's clock, by which entries are dated.
-- KEYS  1 the audit log
-- Answer: { its last line or '', unix seconds, microseconds of the second }
local now = redis.call('TIME')
return { redis.call('LINDEX', KEYS[1], -1) or '', now[1], now[2] }
