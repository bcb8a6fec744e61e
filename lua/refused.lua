-- Reads the log of refusals of an account. An element that is too long to be a refusal is skipped.
--
-- Uses     nothing
-- Defines  nothing; it returns
--
-- KEYS[1]  the log, see refusals.lua
-- ARGV[1]  how many, ARGV[2] the longest, in bytes
-- reply    the refusals, the newest first
-- cost     one command
local all, read = redis.call('LRANGE', KEYS[1], 0, ARGV[1] - 1), {}
for i = 1, #all do
  if #all[i] <= tonumber(ARGV[2]) then read[#read + 1] = all[i] end
end
return read
