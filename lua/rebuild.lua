-- What is rarely needed of a ledger: to write its value anew, and to read it while the clock is behind. The algorithm is that
-- of tollgate-core's log.rs.
--
-- Uses     what it is given: now, shortest_ttl (clock.lua), walk (ledger.lua)
-- Defines  rare(now, shortest_ttl, walk), which makes these functions:
--          rebuild(key, h, charges, steps): writes the whole value anew, and returns its `h`
--          read_behind(key, h, s, aside_s, start, finish, unit, cost, limit): reads a column of which something is set aside,
--          or that is ahead of the clock

local function rare(now, shortest_ttl, walk)
  local pack, unpack_bytes, rep, floor, call = struct.pack, struct.unpack, string.rep, math.floor, redis.call

  local function width_of(amount)
    local width = 1
    while amount >= 256 ^ width do width = width + 1 end
    return width
  end

  -- The logs of a ledger as tables, with all entries.
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
      if log.kind == {{ CALENDAR }} then
        local previous = { unpack_bytes('<{{ PREVIOUS }}' .. rep('{{ AMOUNT }}', columns), h[{{ behind_totals }}]) }
        log.previous_until = previous[1]
        for x = 1, columns do log.columns[x].previous = previous[x + 1] end
      elseif log.kind > {{ ASIDE }} then
        log.noticed = h[{{ behind_totals }}]
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
        log.times[e] = log.latest - (log.latest - entry[1]) % {{ TIME_RANGE }}
        for x = 1, columns do log.columns[x].costs[e] = entry[x + 1] end
      end
      logs[l] = log
      s = {{ next_log('columns') }}
    end
    return logs
  end

  local function find(logs, kind, id)
    for l = 1, #logs do
      if logs[l].kind == kind and logs[l].id == id then return logs[l], l end
    end
  end

  local function is_zero(columns, name)
    for x = 1, #columns do
      if columns[x][name] > 0 then return false end
    end
    return true
  end

  -- Adds to `log` the amounts that `columns` have under `name`.
  local function add_amounts(log, columns, name)
    for x = 1, #columns do
      local column
      for y = 1, #log.columns do
        if log.columns[y].unit == columns[x].unit then column = log.columns[y] end
      end
      if not column then
        column = { unit = columns[x].unit, total = 0, charge = 0, previous = 0, costs = {} }
        for e = 1, log.count do column.costs[e] = 0 end
        log.columns[#log.columns + 1] = column
      end
      column.total = column.total + columns[x][name]
      if column.total > {{ MAX_AMOUNT }} then column.total = {{ MAX_AMOUNT }} end
    end
  end

  -- Sets amounts of a log aside, which count again from `from` until `finish`. Returns what is set aside, if anything.
  local function set_aside(logs, log, name, from, finish, noticed)
    local aside, at = find(logs, log.kind + {{ ASIDE }}, log.id)
    if is_zero(log.columns, name) then return aside end
    if aside and is_zero(aside.columns, 'total') then
      table.remove(logs, at)
      aside = nil
    end
    if not aside then
      aside = { kind = log.kind + {{ ASIDE }}, id = log.id, head = 0, count = 0, oldest = from, latest = finish, columns = {} }
      logs[#logs + 1] = aside
    end
    add_amounts(aside, log.columns, name)
    aside.noticed = noticed
    if from < aside.oldest then aside.oldest = from end
    if finish > aside.latest then aside.latest = finish end
    return aside
  end

  -- A calendar goes on to another period. What was set aside of periods that are over becomes part of the one before.
  local function roll_to(logs, log, start, finish)
    local from, until_ms = log.oldest, log.latest
    local passed, at = find(logs, log.kind + {{ ASIDE }}, log.id)
    if passed and passed.latest <= start then
      table.remove(logs, at)
      if not is_zero(passed.columns, 'total') then
        add_amounts(log, passed.columns, 'total')
        from, until_ms = math.min(from, passed.oldest), math.max(until_ms, passed.latest)
      end
    end
    for x = 1, #log.columns do log.columns[x].previous, log.columns[x].total = log.columns[x].total, 0 end
    log.head, log.previous_until, log.oldest, log.latest = from, until_ms, start, finish
  end

  -- Brings a log to the time of the clock: sets aside what the clock is behind of, or goes on to another period.
  local function bring_to_now(logs, kind, id, start, finish)
    local log = find(logs, kind, id)
    local aside = find(logs, kind + {{ ASIDE }}, id)
    if kind == {{ SLIDING }} then
      if log and log.count > 0 and log.latest > now + id then
        local from = log.latest > id and log.latest - id or 0
        aside = set_aside(logs, log, 'total', from, log.latest + id, now)
        if aside then
          local first, following = aside.count == 0 and log.head or aside.head, log.head + log.count
          aside.count = math.min(following - first, {{ MOST_SET_ASIDE }})
          aside.head = following - aside.count
        end
        log.head, log.count, log.times = log.head + log.count, 0, {}
        log.latest = 0
        for x = 1, #log.columns do log.columns[x].total, log.columns[x].costs = 0, {} end
      end
      if aside and aside.noticed > now then aside.noticed = now end
    elseif log and log.oldest > start then
      aside = set_aside(logs, log, 'total', log.oldest, log.latest, start)
      for x = 1, #log.columns do log.columns[x].total = 0 end
      if log.previous_until > start then
        if log.head == start and log.previous_until == finish then
          for x = 1, #log.columns do log.columns[x].total = log.columns[x].previous end
        else
          aside = set_aside(logs, log, 'previous', log.head, log.previous_until, start)
        end
        log.head, log.previous_until = 0, 0
        for x = 1, #log.columns do log.columns[x].previous = 0 end
      end
      if aside then aside.noticed = start end
      log.oldest, log.latest = start, finish
    elseif log and log.oldest < start then
      roll_to(logs, log, start, finish)
    end
  end

  -- Adds the log and the column that a charge needs.
  local function add(logs, charge)
    local kind, id, start, finish, unit, amount = unpack(charge)
    local log, column = find(logs, kind, id), nil
    if not log then
      log = { kind = kind, id = id, head = 0, count = 0, oldest = start, latest = finish, times = {}, columns = {} }
      if kind == {{ SLIDING }} then
        local aside = find(logs, kind + {{ ASIDE }}, id)
        log.head = aside and math.max(now, aside.head + aside.count) or now
      else
        log.previous_until = 0
      end
      logs[#logs + 1] = log
    end
    log.charged = true
    for x = 1, #log.columns do
      if log.columns[x].unit == unit then column = log.columns[x] end
    end
    if not column then
      column = { unit = unit, total = 0, previous = 0, costs = {} }
      for e = 1, log.count do column.costs[e] = 0 end
      log.columns[#log.columns + 1] = column
    end
    column.charge = amount
  end

  -- The logs and columns that hold something or are about to, in the order of the shape; without logs that have expired, if
  -- something is charged.
  local function used_ones(logs, charges)
    local used = {}
    for l = 1, #logs do
      local log, columns = logs[l], {}
      local expires_at = log.kind == {{ SLIDING }} and log.latest + log.id or log.latest
      local aside = find(logs, log.kind + {{ ASIDE }}, log.id)
      if aside and (aside.latest <= now or is_zero(aside.columns, 'total')) then aside = nil end
      if charges == 0 or log.charged or expires_at > now or aside then
        for x = 1, #log.columns do
          local column = log.columns[x]
          if column.total > 0 or (column.previous or 0) > 0 or (column.charge or 0) > 0 then columns[#columns + 1] = column end
        end
        -- A log whose charges were all given back keeps its entries, and so their numbers.
        if #columns == 0 and (aside or log.kind == {{ SLIDING }} and log.count > 0) then columns[1] = log.columns[1] end
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
  -- that stepped (`steps` are the { kind, id, start, end } of the windows that must be brought to now). Rings double when they are full, and shrink to what they hold when they hold less than an eighth. So
  -- the work stays in proportion to the calls that caused it. `charges` are { kind, id, start, end, unit, amount }.
  local function rebuild(key, h, charges, steps)
    local logs = h and decode(key, h) or {}
    for i = 1, steps and #steps or 0 do bring_to_now(logs, unpack(steps[i])) end
    for i = 1, #charges do add(logs, charges[i]) end
    logs = used_ones(logs, #charges)
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
        expires_at = (log.charged and now > log.latest and now or log.latest) + log.id
        rings[l] = encode(log)
        local before, group = log.before_latest, log.oldest_group
        for x = 1, #columns do fields[#fields + 1] = columns[x].costs[log.count] or 0 end
        fields[#fields + 1], fields[#fields + 2] = before, group
        -- Three digits each, so that the format has the same length for entries of any size.
        formats[l + 1] = formats[l + 1] .. rep('{{ AMOUNT }}', #columns) .. string.format('c%03dc%03d', #before, #group)
        offset = offset + {{ bytes(AMOUNT) }} * #columns + #before + #group
      elseif log.kind == {{ CALENDAR }} then
        local previous = { log.previous_until }
        for x = 1, #columns do previous[x + 1] = columns[x].previous end
        fields[#fields + 1] = pack('<{{ PREVIOUS }}' .. rep('{{ AMOUNT }}', #columns), unpack(previous))
        formats[l + 1] = formats[l + 1] .. string.format('c%03d', #fields[#fields])
        offset = offset + #fields[#fields]
      else
        fields[#fields + 1] = log.noticed
        formats[l + 1] = formats[l + 1] .. '{{ NOTICED }}'
        offset = offset + {{ bytes(NOTICED) }}
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

  -- Reads a column of which something is set aside (from g[aside_s] on; 0 if nothing), or whose log (from g[s] on; 0 if there
  -- is none) is ahead of the clock. Changes nothing. Returns what is used, when it resets, and when `cost` fits below `limit`;
  -- and how much the log itself holds.
  local function read_behind(key, h, s, aside_s, start, finish, unit, cost, limit)
    local g, own, column, set_aside, from, until_ms, noticed = h[{{ STATICS }}], 0, nil, 0, nil, nil, nil
    local kind, id, behind = nil, nil, false
    if aside_s > 0 then
      local s = aside_s
      local d, columns = g[{{ fields }}], g[{{ columns }}]
      kind, id = g[{{ kind }}] - {{ ASIDE }}, g[{{ id }}]
      from, until_ms, noticed = h[{{ oldest }}], h[{{ latest }}], h[{{ behind_totals }}]
      local any = false
      for x = 1, columns do
        if g[{{ unit('x') }}] == unit then set_aside = h[{{ total('x') }}] end
        any = any or h[{{ total('x') }}] > 0
      end
      if not any then from, until_ms = nil, nil end
    end
    if s > 0 then
      local d, columns = g[{{ fields }}], g[{{ columns }}]
      kind, id = g[{{ kind }}], g[{{ id }}]
      local any, earlier = false, false
      for x = 1, columns do
        if g[{{ unit('x') }}] == unit then own, column = h[{{ total('x') }}], x end
        any = any or h[{{ total('x') }}] > 0
      end
      local function widen(first, last)
        if not from or first < from then from = first end
        if not until_ms or last > until_ms then until_ms = last end
      end
      if kind == {{ SLIDING }} then
        behind = noticed and noticed > now + id
        if h[{{ count }}] > 0 and h[{{ latest }}] > now + id then
          behind = true
          if any then
            widen(h[{{ latest }}] > id and h[{{ latest }}] - id or 0, h[{{ latest }}] + id)
            noticed = now
          end
          set_aside, own, column = set_aside + own, 0, nil
        end
      elseif h[{{ oldest }}] > start then
        if any then widen(h[{{ oldest }}], h[{{ latest }}]) end
        set_aside, own, noticed = set_aside + own, 0, start
        local previous = { unpack_bytes('<{{ PREVIOUS }}' .. rep('{{ AMOUNT }}', columns), h[{{ behind_totals }}]) }
        if previous[1] > start then
          for x = 1, columns do earlier = earlier or previous[x + 1] > 0 end
          if h[{{ number }}] == start and previous[1] == finish then
            own = column and previous[column + 1] or 0
          elseif earlier then
            widen(h[{{ number }}], previous[1])
            set_aside = set_aside + (column and previous[column + 1] or 0)
          end
        end
      elseif h[{{ oldest }}] < start then
        own = 0
      end
    end
    if behind and noticed and noticed > now then noticed = now end
    if set_aside > {{ MAX_AMOUNT }} then set_aside = {{ MAX_AMOUNT }} end
    if not from then set_aside = 0 end

    local over, fit, resets_at
    if kind == {{ CALENDAR }} then
      local used = own
      if set_aside > 0 and (noticed == start or from <= start and start < until_ms) then used = used + set_aside end
      if used > {{ MAX_AMOUNT }} then used = {{ MAX_AMOUNT }} end
      resets_at, fit = finish, 0
      if set_aside > 0 and from <= finish and finish < until_ms then resets_at = until_ms end
      if cost > 0 and cost - (limit - used) > 0 then fit = cost > limit and {{ NEVER }} or resets_at end
      return used, resets_at, fit, own
    end
    local counts, ends_at = false, now
    if set_aside > 0 then
      local marked, covered = noticed + id, from <= now and now < until_ms
      counts = now < marked or covered
      if counts then ends_at = (covered or from <= marked and marked < until_ms) and until_ms or marked end
    end
    local counted = counts and set_aside or 0
    local used = own + counted
    if used > {{ MAX_AMOUNT }} then used = {{ MAX_AMOUNT }} end
    resets_at, fit, over = now, 0, cost - (limit - used)
    if own > 0 then
      local d = g[{{ fields }}]
      resets_at = h[{{ latest }}] + id
    end
    if counted > 0 and ends_at > resets_at then resets_at = ends_at end
    if cost > 0 and over > 0 then
      fit = {{ NEVER }}
      if cost <= limit then
        if over <= own then fit = walk(key, h, s, nil, column, over) + id end
        local rest, later = over - counted, ends_at
        if rest > 0 and rest <= own then later = math.max(ends_at, walk(key, h, s, nil, column, rest) + id) end
        if (rest <= 0 or rest <= own) and later < fit then fit = later end
        if set_aside > 0 and from <= fit and fit < until_ms and ends_at ~= until_ms then fit = until_ms end
      end
    end
    return used, resets_at, fit, own
  end

  return rebuild, read_behind
end
