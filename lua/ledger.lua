-- One ledger in one string value: everything that is counted for one scope. README.md shows the layout as tables. The
-- algorithm is that of tollgate-core's log.rs, with which every reply must agree.
--
-- Uses     nothing
-- Defines  read_header(key), write_fields(key, h), walk(key, h, s, horizon, column, excess)
--
-- The value begins with a header (little endian, offsets from 0): version u8 ({{ VERSION }}), lengths of the header, the
-- shape, the fields' format and the statics' format u16 each (formats are of `struct`), and then, all but the fields at
-- places that follow from the shape:
--
--   the shape: number of logs u8; per log, in the order of kinds and ids: kind u8 (1 sliding, 2 calendar; 3 and 4: what
--     was set aside of these), columns u8, id u32 (window in ms, or the calendar's id), per column, in their order, unit u32
--   the fields' format
--   the statics: number of logs u8; per log: kind u8, columns u8, id u32, d u8, capacity u16, offset of the ring u32,
--     size of an entry u8, format of an entry (3 bytes, and 2 a column); per column: unit u32, width u8
--   the fields, which every decision writes back with one call: until when the key lives u48 (ms); per log, at d:
--     number of the oldest entry u48, entries u16, time of the oldest u48, time of the latest u48 (calendar: start of the
--     period before, 0, start, end; set aside: number of the first entry, entries, start and end of the time in which it
--     counts again); per column what is in the window u56; behind these, per sliding log: per column the cost of the
--     latest entry u56; the three entries before it; the group of the oldest; per calendar, as one string: the end of the
--     period before u48, and per column what was in it u56; per log that was set aside: when the step was noticed u48
--   the statics' format
--
-- The scripts read the header into the array `h`: h[{{ STATICS }}] is the array `g` of the statics, h[{{ FIELDS_FORMAT }}]
-- the fields' format, h[{{ FIELDS_AT }}] their offset, and from h[{{ LIVES_UNTIL }}] on stand the fields (behind them may
-- stand one more number). The statics of a log begin at g[s], its fields at h[d]. The names of the places come from
-- crates/tollgate-store/src/redis/layout.rs; they are made of the locals `s`, `d` and `columns`.
--
-- Behind the header stand, per sliding log, a directory and a ring. Entry number n is in slot n % capacity for as long as it
-- lives, so its number is its address: time u32 (mod 2^32), and per column the cost (as many bytes as the largest of its
-- column needs). A log's first number is the time when it began, so that no number is that of an entry of an earlier log
-- which has expired; the number of a calendar's charges is the start of their period.
--
-- Four entries whose numbers have the same n / 4 are a group. The group of the latest entry is pending: it is in the header
-- only, and is written to the ring as a whole when the next group begins. The header's copy of the oldest entry's group is
-- valid unless that group is pending. So a call that adds an entry or lets one go needs the ring only every fourth time.
--
-- The directory, in front of a ring of 128 slots and more, has a line per block of 64 entries: time of the last u32, per
-- column the block's sum u56. A line is written when the next block begins, as the latest entry may still grow.
--
-- What costs time here is calls into Redis (0.7 to 1 µs each, and 0.2 for a number among the arguments), bytes made into Lua
-- strings, tables that grow, and functions made: every run makes all functions that it mentions, and a cell for every outer
-- local that they use. So the functions below use none, and those that are rarely needed are in rebuild.lua, which makes them
-- only when they are called for.

-- The header of the value at `key`: false if there is no value, nil and what is wrong if it cannot be read.
local function read_header(key)
  -- The header of two windows is mostly no longer than this.
  local raw = redis.call('GETRANGE', key, '0', '{{ HEADER_READ - 1 }}')
  if raw == '' then return false end
  local version, length, shape, fields, statics, at = struct.unpack('<{{ HEAD }}', raw)
  if version ~= {{ VERSION }} then return nil, 'TGVERSION a counter is of version ' .. version end
  if length > {{ HEADER_READ }} then raw = redis.call('GETRANGE', key, 0, length - 1) end
  at = at + shape
  local format = string.sub(raw, at, at + fields - 1)
  local g = { struct.unpack(string.sub(raw, length - statics + 1, length), raw, at + fields) }
  local from = g[#g]
  local h = { g, format, from - 1, struct.unpack(format, raw, from) }
  -- A value that was changed by hand could make Redis walk, or allocate, without end. Values have at most 115 KiB, and in
  -- addition the windows of earlier policies, until these expire.
  local s = {{ FIRST_LOG }}
  for _ = 1, g[1] do
    local d = g[{{ fields }}]
    if g[{{ capacity }}] > {{ MOST_ENTRIES }} or g[{{ ring }}] >= {{ MAX_VALUE_BYTES }}
      or g[{{ kind }}] == {{ SLIDING }} and h[{{ count }}] > {{ MOST_ENTRIES }} then
      return nil, 'TGUNREADABLE a counter has an entry outside of its bounds'
    end
    s = {{ next_log('g[' ~ columns ~ ']') }}
  end
  return h
end

-- Writes the fields back.
local function write_fields(key, h)
  redis.call('SETRANGE', key, h[{{ FIELDS_AT }}], struct.pack(h[{{ FIELDS_FORMAT }}], unpack(h, {{ LIVES_UNTIL }})))
end

-- Walks from the oldest entry on, whole blocks at a time where possible. There is at least one entry.
--
-- With `horizon`: passes every entry that is not later than it, and takes these out of the log. The latest is later.
-- With `column`: passes entries until their costs in that column reach `excess`; returns the time of the last one.
-- Reads at most the directory, two blocks and two groups, whatever the log's length.
local function walk(key, h, s, horizon, column, excess)
  local g = h[{{ STATICS }}]
  local columns, d, capacity, ring = g[{{ columns }}], g[{{ fields }}], g[{{ capacity }}], g[{{ ring }}]
  local size, format = g[{{ size }}], g[{{ entry }}]
  local before_latest, oldest_group = {{ before_latest }}, {{ oldest_group }}
  local seq, latest = h[{{ number }}], h[{{ latest }}]
  local last = seq + h[{{ count }}] - 1
  local pending, group_end = last - last % {{ GROUP }}, seq - seq % {{ GROUP }} + {{ GROUP }}
  local chunk, directory = {{ GROUP }}, nil
  if horizon and seq + 1 < last then
    -- Mostly the oldest has left and the next of its group has not: that takes two looks at the header's copy.
    local bytes, first = h[oldest_group], group_end - {{ GROUP }}
    if seq >= pending then bytes, first = h[before_latest], last - {{ GROUP - 1 }} end
    local at = (seq - first) * size + 1
    if seq + 1 < group_end and columns <= 2 then
      local time = latest - (latest - struct.unpack('<{{ ENTRY }}', bytes, at + size)) % {{ TIME_RANGE }}
      if time > horizon then
        local _, one, other = struct.unpack(format, bytes, at)
        h[{{ number }}], h[{{ count }}], h[{{ oldest }}] = seq + 1, last - seq, time
        h[{{ total('1') }}] = h[{{ total('1') }}] - one
        if columns == 2 then h[{{ total('2') }}] = h[{{ total('2') }}] - other end
        return
      end
    end
  end
  while seq < last do
    -- Whole blocks are worth a look only when the walk goes far.
    while chunk == {{ BLOCK }} and seq % {{ BLOCK }} == 0 and seq + {{ BLOCK }} <= last do
      local line_size, lines = {{ bytes(LINE) }} + {{ bytes(AMOUNT) }} * columns, capacity / {{ BLOCK }}
      directory = directory or redis.call('GETRANGE', key, ring - lines * line_size, ring - 1)
      local line = {
        struct.unpack('<{{ LINE }}' .. string.rep('{{ AMOUNT }}', columns), directory, seq / {{ BLOCK }} % lines * line_size + 1)
      }
      if horizon then
        if latest - (latest - line[1]) % {{ TIME_RANGE }} > horizon then break end
        for x = 1, columns do h[{{ total('x') }}] = h[{{ total('x') }}] - line[x + 1] end
      else
        if line[column + 1] >= excess then break end
        excess = excess - line[column + 1]
      end
      seq = seq + {{ BLOCK }}
    end
    -- The next entries that are contiguous, without the latest: `n` of `bytes`, which begin with entry number `first`.
    local bytes, first, n, of_ring
    if seq >= pending then
      bytes, first, n = h[before_latest], last - {{ GROUP - 1 }}, last - seq
    elseif seq < group_end then
      bytes, first, n = h[oldest_group], group_end - {{ GROUP }}, group_end - seq
    else
      local slot = seq % capacity
      n = {{ BLOCK }} - seq % {{ BLOCK }}
      if n > chunk then n = chunk end
      if n > pending - seq then n = pending - seq end
      if n > capacity - slot then n = capacity - slot end
      local from = ring + slot * size
      bytes, first, of_ring = redis.call('GETRANGE', key, from, from + n * size - 1), seq, true
      chunk = {{ BLOCK }}
    end
    local entries = { struct.unpack(string.rep(format, n), bytes, (seq - first) * size + 1) }
    for e = 0, n - 1 do
      local at = e * (columns + 1) + 1
      local time = latest - (latest - entries[at]) % {{ TIME_RANGE }}
      if horizon then
        if time > horizon then
          seq = seq + e
          h[{{ number }}], h[{{ count }}], h[{{ oldest }}] = seq, last - seq + 1, time
          if of_ring then
            local group = (seq - seq % {{ GROUP }} - first) * size
            h[oldest_group] = string.sub(bytes, group + 1, group + {{ GROUP }} * size)
          end
          return
        end
        for x = 1, columns do h[{{ total('x') }}] = h[{{ total('x') }}] - entries[at + x] end
      else
        excess = excess - entries[at + column]
        if excess <= 0 then return time end
      end
    end
    seq = seq + n
  end
  if horizon then h[{{ number }}], h[{{ count }}], h[{{ oldest }}] = last, 1, latest end
  return latest
end
