-- A page of SCAN, of the hashes alone that have a value in a field: the others need not travel.
-- KEYS  none: it reads what the node that runs it holds
-- ARGV  1 cursor, 2 pattern, 3 count, 4 field, 5 value
-- Answer: { the next cursor, 0 after the last page, names }
local page = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', ARGV[3])
local found = {}
for _, key in ipairs(page[2]) do
  local value = redis.pcall('HGET', key, ARGV[4]) -- an error, a table, where the key is no hash
  if value == ARGV[5] then found[#found + 1] = key end
end
return { page[1], found }
