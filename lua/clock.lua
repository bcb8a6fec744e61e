-- The clock of every script: Redis's own, in whole milliseconds. Tests put another file in its place.
local now
do
  local time = redis.call('TIME')
  local ms = time[2] / 1000
  now = time[1] * 1000 + (ms - ms % 1)
end
-- Keys live at least this long; the tests' clock does not run like the one that expires keys.
local shortest_ttl = 0
