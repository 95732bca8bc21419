-- Add lines to the audit log unless somebody else has since it was read.
-- KEYS  1 the audit log
-- ARGV  1 its last line when it was read, '' for none; then the lines
-- Answer: 1 added, 2 the log changed meanwhile
if (redis.call('LINDEX', KEYS[1], -1) or '') ~= ARGV[1] then return 2 end
for i = 2, #ARGV do redis.call('RPUSH', KEYS[1], ARGV[i]) end
return 1
