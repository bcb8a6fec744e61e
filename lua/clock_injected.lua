-- The clock of tests: the last argument, in milliseconds. No production build uses this file.
--
-- Uses     nothing
-- Defines  now, shortest_ttl
local now = tonumber(ARGV[#ARGV])
local shortest_ttl = 3600000
