-- Apply commands to a record unless somebody changed it since it was read.
-- KEYS  1 the record; the others that the commands write
-- ARGV  1 how many words the record had when it was read, then those (field, value, ...)
--       then for each command how many words it has, and the words
-- Answer: 1 applied, 0 changed meanwhile
local words = tonumber(ARGV[1])
local now = redis.call('HGETALL', KEYS[1])
if #now ~= words then return 0 end
local values = {}
for i = 1, #now, 2 do values[now[i]] = now[i + 1] end
for i = 2, words, 2 do
  if values[ARGV[i]] ~= ARGV[i + 1] then return 0 end
end
local i = words + 2
while i <= #ARGV do
  local length = tonumber(ARGV[i])
  redis.call(unpack(ARGV, i + 1, i + length))
  i = i + length + 1
end
return 1
