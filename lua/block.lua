-- Writes a line of a ring's directory when a block of entries is complete; ledger.lua states the layout.
--
-- Uses     nothing
-- Defines  close_block(key, seq, oldest, latest, columns, capacity, ring, size, entry): writes the line of the block that
--          ends before entry number `seq`, of which no entry is pending. `oldest` is the number of the oldest entry,
--          `latest` the time of the entry before `seq`, `entry` the format of an entry
local function close_block(key, seq, oldest, latest, columns, capacity, ring, size, entry)
  local line_size, lines = {{ bytes(LINE) }} + {{ bytes(AMOUNT) }} * columns, capacity / {{ BLOCK }}
  local first, sums = seq - {{ BLOCK }}, {}
  if first < oldest then first = oldest end
  local from, n = ring + first % capacity * size, seq - first
  local bytes = redis.call('GETRANGE', key, from, from + n * size - 1)
  local entries = { struct.unpack(string.rep(entry, n), bytes) }
  for x = 1, columns do
    sums[x] = 0
    for e = 0, n - 1 do sums[x] = sums[x] + entries[e * (columns + 1) + 1 + x] end
  end
  redis.call('SETRANGE', key, ring + ((seq / {{ BLOCK }} - 1) % lines - lines) * line_size,
    struct.pack('<{{ LINE }}' .. string.rep('{{ AMOUNT }}', columns), latest % {{ TIME_RANGE }}, unpack(sums)))
end
