-- Reads the ids of the accounts of a domain, a page at a time. A member that is too long to be an id is skipped.
--
-- Uses     nothing
-- Defines  nothing; it returns
--
-- KEYS[1]  the sorted set of ids, all of the score 0
-- ARGV[1]  where to begin, as of ZRANGEBYLEX; ARGV[2] how many; ARGV[3] the longest id, in bytes
-- reply    the ids, in the order of their bytes
-- cost     one command, and up to nine more where many members are skipped
local ids, from, take, longest = {}, ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
for _ = 1, 10 do
  local some = redis.call('ZRANGEBYLEX', KEYS[1], from, '+', 'LIMIT', 0, take)
  for i = 1, #some do
    if #some[i] <= longest and #ids < take then ids[#ids + 1] = some[i] end
  end
  if #ids == take or #some < take then break end
  from = '(' .. some[#some]
end
return ids
