-- Removes counters of one account, whatever they hold.
--
-- Uses     nothing
-- Defines  nothing; it returns
--
-- KEYS     ledgers and scopes of slots; the last one is the set of the names of its caller-named ledgers, see apply.lua
-- ARGV[1]  what the keys of the account begin with
-- ARGV[2]  '1' to remove the caller-named ledgers as well
-- reply    how many keys were removed
-- cost     one command for each key
local gone = 0
for k = 1, #KEYS - 1 do gone = gone + redis.call('DEL', KEYS[k]) end
if ARGV[2] == '1' then
  while true do
    local names = redis.pcall('ZRANGEBYSCORE', KEYS[#KEYS], '-inf', '+inf', 'LIMIT', '0', '500')
    if names.err or #names == 0 then break end
    for i = 1, #names do
      if string.sub(names[i], 1, #ARGV[1]) == ARGV[1] then gone = gone + redis.call('DEL', names[i]) end
    end
    redis.call('ZREM', KEYS[#KEYS], unpack(names))
  end
  redis.call('DEL', KEYS[#KEYS])
end
return gone
