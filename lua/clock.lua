-- The clock of every script: Redis's own, in whole milliseconds. Tests put clock_injected.lua in its place.
--
-- Uses     nothing
-- Defines  now, shortest_ttl
local now
do
  local time = redis.call('TIME')
  local ms = time[2] / 1000
  now = time[1] * 1000 + (ms - ms % 1)
end
-- Keys live at least this long. Tests need an hour, as their clock does not run like Redis's, which expires the keys.
local shortest_ttl = 0
