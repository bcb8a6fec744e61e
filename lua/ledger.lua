-- One ledger in one string value: everything that is counted for one scope. README.md shows the layout as tables. The
-- algorithm is that of tollgate-core's log.rs, with which every reply must agree.
--
-- Uses     nothing
-- Defines  read_header(key), write_fields(key, h), walk(key, h, s, horizon, column, excess), rare(now, shortest_ttl)
--
-- The value begins with a header (little endian, offsets from 0): version u8 ({{ VERSION }}), lengths of the header, the
-- shape, the fields' format and the statics' format u16 each (formats are of `struct`), and then, all but the fields at
-- places that follow from the shape:
--
--   the shape: number of logs u8; per log, in the order of kinds and ids: kind u8 (1 sliding, 2 calendar), columns
--     u8, id u32 (window in ms, or the calendar's id), per column, in their order, unit u32
--   the fields' format
--   the statics: number of logs u8; per log: kind u8, columns u8, id u32, d u8, capacity u16, offset of the ring u32,
--     size of an entry u8, format of an entry (3 bytes, and 2 a column); per column: unit u32, width u8
--   the fields, which every decision writes back with one call: until when the key lives u48 (ms); per log, at d:
--     number of the oldest entry u48, entries u16, time of the oldest u48, time of the latest u48 (calendar: its number,
--     0, start, end); per column what is in the window u56; per sliding log, behind these: per column the cost of the
--     latest entry u56; the three entries before it; the group of the oldest
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
-- which has expired; a calendar count gets another number each time it begins anew.
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
-- local that they use. So the functions below use none, and those that are rarely needed are made only when called for.

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

-- Makes the function that is rarely needed:
--
-- rebuild(key, h, charges)     writes the whole value anew, and returns its `h`
local function rare(now, shortest_ttl)
  local pack, unpack_bytes, rep, floor, call = struct.pack, struct.unpack, string.rep, math.floor, redis.call

  local function width_of(amount)
    local width = 1
    while amount >= 256 ^ width do width = width + 1 end
    return width
  end

  -- The logs of a ledger as tables, with all entries; what is dated later than now counts as of now.
  local function decode(key, h)
    local logs, raw = {}, call('GETRANGE', key, 0, {{ MAX_VALUE_BYTES - 1 }})
    local g, s = h[{{ STATICS }}], {{ FIRST_LOG }}
    for l = 1, g[1] do
      local columns, d, size = g[{{ columns }}], g[{{ fields }}], g[{{ size }}]
      local log = {
        kind = g[{{ kind }}], id = g[{{ id }}], times = {}, columns = {},
        head = h[{{ number }}], count = h[{{ count }}], oldest = h[{{ oldest }}], latest = h[{{ latest }}],
      }
      for x = 1, columns do
        log.columns[x] = { unit = g[{{ unit('x') }}], total = h[{{ total('x') }}], charge = 0, costs = {} }
      end
      local last = log.head + log.count - 1
      for e = 1, log.kind == {{ SLIDING }} and log.count or 0 do
        local seq, entry = log.head + e - 1, nil
        if seq == last then
          entry = { log.latest, unpack(h, {{ held('1') }}, {{ held('columns') }}) }
        elseif seq >= last - last % {{ GROUP }} then
          entry = { unpack_bytes(g[{{ entry }}], h[{{ before_latest }}], (seq - last + {{ GROUP - 1 }}) * size + 1) }
        else
          entry = { unpack_bytes(g[{{ entry }}], raw, g[{{ ring }}] + seq % g[{{ capacity }}] * size + 1) }
        end
        local time = log.latest - (log.latest - entry[1]) % {{ TIME_RANGE }}
        log.times[e] = time > now and now or time
        for x = 1, columns do log.columns[x].costs[e] = entry[x + 1] end
      end
      if log.kind == {{ SLIDING }} and log.latest > now then log.latest = now end
      if log.kind == {{ SLIDING }} and log.oldest > now then log.oldest = now end
      logs[l] = log
      s = {{ next_log('columns') }}
    end
    return logs
  end

  -- Adds the log and the column that a charge needs.
  local function add(logs, charge)
    local kind, id, start, finish, unit, amount = unpack(charge)
    local log, column
    for l = 1, #logs do
      if logs[l].kind == kind and logs[l].id == id then log = logs[l] end
    end
    if not log then
      log = { kind = kind, id = id, head = now, count = 0, oldest = start, latest = finish, times = {}, columns = {} }
      logs[#logs + 1] = log
    end
    log.charged = true
    for x = 1, #log.columns do
      if log.columns[x].unit == unit then column = log.columns[x] end
    end
    if not column then
      column = { unit = unit, total = 0, costs = {} }
      for e = 1, log.count do column.costs[e] = 0 end
      log.columns[#log.columns + 1] = column
    end
    column.charge = amount
  end

  -- The logs and columns that hold something or are about to, in the order of the shape.
  local function used_ones(logs)
    local used = {}
    for l = 1, #logs do
      local log, columns = logs[l], {}
      local expires_at = log.kind == {{ SLIDING }} and log.latest + log.id or log.latest
      if log.charged or expires_at > now then
        for x = 1, #log.columns do
          if log.columns[x].total > 0 or (log.columns[x].charge or 0) > 0 then columns[#columns + 1] = log.columns[x] end
        end
        -- A log whose charges were all given back keeps its entries, and so their numbers.
        if #columns == 0 and log.count > 0 then columns[1] = log.columns[1] end
      end
      log.columns = columns
      table.sort(columns, function(a, b) return a.unit < b.unit end)
      if #columns > 0 then used[#used + 1] = log end
    end
    table.sort(used, function(a, b) return a.kind < b.kind or a.kind == b.kind and a.id < b.id end)
    return used
  end

  -- Determines widths, size and capacity of a sliding log: with room for one more entry, or for the charge added to the
  -- latest one.
  local function measure(log)
    log.size, log.format, log.capacity, log.lines = {{ bytes(ENTRY) }}, '<{{ ENTRY }}', {{ GROUP }}, 0
    for x = 1, #log.columns do
      local column = log.columns[x]
      local largest = (column.charge or 0) + (column.costs[log.count] or 0)
      for e = 1, log.count do
        if column.costs[e] > largest then largest = column.costs[e] end
      end
      column.width = width_of(largest)
      log.size, log.format = log.size + column.width, log.format .. 'I' .. column.width
    end
    while log.capacity <= log.count and log.capacity < {{ MOST_ENTRIES }} do log.capacity = log.capacity * 2 end
    if log.capacity > {{ BLOCK }} then log.lines = log.capacity / {{ BLOCK }} end
  end

  -- The directory and the ring of a log, as bytes. Sets the two groups of the log that the header holds.
  local function encode(log)
    local slots, lines, sums, entry = {}, {}, {}, {}
    local line_format, nothing = '<{{ LINE }}' .. rep('{{ AMOUNT }}', #log.columns), rep('\0', log.size)
    local last, by_number = log.head + log.count - 1, {}
    for slot = 1, log.capacity do slots[slot] = nothing end
    for line = 1, log.lines do lines[line] = rep('\0', {{ bytes(LINE) }} + {{ bytes(AMOUNT) }} * #log.columns) end
    for x = 1, #log.columns do sums[x] = 0 end
    for e = 1, log.count do
      local seq = log.head + e - 1
      for x = 1, #log.columns do
        entry[x] = log.columns[x].costs[e]
        sums[x] = sums[x] + entry[x]
      end
      by_number[seq] = pack(log.format, log.times[e] % {{ TIME_RANGE }}, unpack(entry))
      slots[seq % log.capacity + 1] = by_number[seq]
      if seq % {{ BLOCK }} == {{ BLOCK - 1 }} then
        if log.lines > 0 then
          lines[floor(seq / {{ BLOCK }}) % log.lines + 1] = pack(line_format, log.times[e] % {{ TIME_RANGE }}, unpack(sums))
        end
        for x = 1, #sums do sums[x] = 0 end
      end
    end
    local before_latest, oldest_group, group = {}, {}, log.head - log.head % {{ GROUP }}
    for i = 1, {{ GROUP }} do
      before_latest[i] = by_number[last - {{ GROUP }} + i] or nothing
      oldest_group[i] = by_number[group + i - 1] or nothing
    end
    log.before_latest, log.oldest_group = table.concat(before_latest, '', 1, {{ GROUP - 1 }}), table.concat(oldest_group)
    return table.concat(lines) .. table.concat(slots)
  end

  -- For a new ledger, log or column, a ring that is too small or too large, wider costs, logs that have expired, or a clock
  -- that went back. Rings double when they are full, and shrink to what they hold when they hold less than an eighth. So
  -- the work stays in proportion to the calls that caused it. `charges` are { kind, id, start, end, unit, amount }.
  local function rebuild(key, h, charges)
    local logs = h and decode(key, h) or {}
    for i = 1, #charges do add(logs, charges[i]) end
    logs = used_ones(logs)
    local until_ms = now + shortest_ttl
    -- In front of the fields of logs stand the four numbers of `h` that are of no log.
    local formats, fields, offset = { '<{{ LIFE }}' }, { 0, 0, 0, 0 }, {{ bytes(LIFE) }}
    local static_formats, statics, shape = { '<{{ LOGS }}' }, { #logs }, { pack('<{{ LOGS }}', #logs) }
    local rings, ring_statics = {}, {}
    for l = 1, #logs do
      local log, units = logs[l], {}
      local columns, sliding, expires_at, d = log.columns, log.kind == {{ SLIDING }}, log.latest, #fields + 1
      for _, value in ipairs({ log.head, log.count, log.oldest, log.latest }) do fields[#fields + 1] = value end
      for x = 1, #columns do fields[#fields + 1], units[x] = columns[x].total, columns[x].unit end
      formats[l + 1] = '{{ LOG_FIELDS }}' .. rep('{{ AMOUNT }}', #columns)
      offset = offset + {{ bytes(LOG_FIELDS) }} + {{ bytes(AMOUNT) }} * #columns
      rings[l], log.capacity, log.size, log.format = '', 0, 0, '{{ NO_ENTRIES }}'
      if sliding then
        measure(log)
        expires_at = (log.charged and now or log.latest) + log.id
        rings[l] = encode(log)
        local before, group = log.before_latest, log.oldest_group
        for x = 1, #columns do fields[#fields + 1] = columns[x].costs[log.count] or 0 end
        fields[#fields + 1], fields[#fields + 2] = before, group
        -- Three digits each, so that the format has the same length for entries of any size.
        formats[l + 1] = formats[l + 1] .. rep('{{ AMOUNT }}', #columns) .. string.format('c%03dc%03d', #before, #group)
        offset = offset + {{ bytes(AMOUNT) }} * #columns + #before + #group
      end
      if expires_at > until_ms then until_ms = expires_at end
      for _, value in ipairs({ log.kind, #columns, log.id, d, log.capacity, 0, log.size, log.format }) do
        statics[#statics + 1] = value
      end
      ring_statics[l] = #statics - 2
      for x = 1, #columns do statics[#statics + 1], statics[#statics + 2] = units[x], columns[x].width or {{ bytes(AMOUNT) }} end
      static_formats[l + 1] = '{{ STATICS_FRONT }}{{ STATICS_RING }}c' .. #log.format .. rep('{{ COLUMN }}', #columns)
      shape[l + 1] = pack('<{{ LOG_SHAPE }}' .. rep('{{ UNIT }}', #columns), log.kind, #columns, log.id, unpack(units))
    end
    -- The key lives a little longer than needed, so that most calls need not renew its life.
    fields[{{ LIVES_UNTIL }}] = until_ms + floor((until_ms - now) / {{ LIFE_SHARE }}) + {{ LIFE_MORE }}
    local static_format, format, shapes = table.concat(static_formats), table.concat(formats), table.concat(shape)
    -- The statics are packed once to find their length, and again when the offsets of the rings are known.
    local at = {{ bytes(HEAD) }} + #shapes + #format + #pack(static_format, unpack(statics))
    local length = at + offset + #static_format
    offset = length
    for l = 1, #logs do
      statics[ring_statics[l]] = offset + (logs[l].lines or 0) * ({{ bytes(LINE) }} + {{ bytes(AMOUNT) }} * #logs[l].columns)
      offset = offset + #rings[l]
    end
    local header = pack('<{{ HEAD }}', {{ VERSION }}, length, #shapes, #format, #static_format) .. shapes .. format
      .. pack(static_format, unpack(statics)) .. pack(format, unpack(fields, {{ LIVES_UNTIL }})) .. static_format
    call('SET', key, header .. table.concat(rings), 'PX', fields[{{ LIVES_UNTIL }}] - now)
    fields[{{ STATICS }}], fields[{{ FIELDS_FORMAT }}], fields[{{ FIELDS_AT }}] = statics, format, at
    return fields
  end

  return rebuild
end
