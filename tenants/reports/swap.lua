-- Put a text in a key's place unless somebody changed it since it was read.
-- KEYS  1 the key
-- ARGV  1 the text that was read, '' for none; 2 the new one, '' to remove the key; 3 seconds after which it expires
-- Answer: 1 done, 0 changed meanwhile
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
end
return 1
