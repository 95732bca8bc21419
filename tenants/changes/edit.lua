-- Apply commands to a record unless somebody changed it, or the audit log, since they were read.
-- KEYS  1 the record; the others that the commands write and that its user's own rights reach
-- ARGV  1 how many words the record had when it was read, -1 where it was no hash, then those (field, value, ...)
--       then the audit log's key, '' for none (no key of KEYS: only a selector reaches it), and its last line, '' for none
--       then for each command how many words it has, and the words
-- Answer: 1 applied, 0 the record changed meanwhile, 2 the log did
local words = tonumber(ARGV[1])
local now = redis.pcall('HGETALL', KEYS[1])
if words == -1 then
  if not now.err then return 0 end
  words = 0
else
  if now.err or #now ~= words then return 0 end
  local values = {}
  for i = 1, #now, 2 do values[now[i]] = now[i + 1] end
  for i = 2, words, 2 do
    if values[ARGV[i]] ~= ARGV[i + 1] then return 0 end
  end
end
local log = ARGV[words + 2]
if log ~= '' and (redis.call('LINDEX', log, -1) or '') ~= ARGV[words + 3] then return 2 end
local i = words + 4
while i <= #ARGV do
  local length = tonumber(ARGV[i])
  redis.call(unpack(ARGV, i + 1, i + length))
  i = i + length + 1
end
return 1
