-- The tests' clock: the last argument, in milliseconds. No production build loads this file.
local now = tonumber(ARGV[#ARGV])
local shortest_ttl = 3600000
