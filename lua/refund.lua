-- Takes charges out of the entries on which they were made. As a script of its own it gives back charges that are part of
-- no reservation; within close.lua, what a reservation did not use.
--
-- Uses     now (clock.lua), read_header, write_fields (ledger.lua)
-- Defines  id, slot_scopes: the first fields of ARGV[2]; refunds: how many rows there are; refunded: what was given back
--          for each
--
-- KEYS     the ledgers
-- ARGV[2]  the reservation's id (16 bytes), its number of scopes of slots u8 (both for closed.lua, otherwise zero), and a
--          row of {{ bytes(REFUND) }} bytes for each charge to give back: ledger u8, kind u8, id u32, unit u32, number of
--          the entry u48, amount u56; little endian
-- cost     per ledger one read and one write of its header; for a row whose entry is no longer in the header a read
--          and a write of its cost, and the same for its block's sum

local id, slot_scopes = struct.unpack('<{{ REFUNDS }}', ARGV[2])
local refunds, refunded, headers = (#ARGV[2] - {{ bytes(REFUNDS) }}) / {{ bytes(REFUND) }}, {}, {}

-- Takes up to `amount` of a column out of the entry with this number, and returns how much. The latest entry and those of
-- the pending group are in the header. Any other is in the ring, and also in the header's copy of the oldest group if it
-- belongs to it. The directory has the sum of its block once the next block has begun.
local function take_out(key, h, s, column, number, amount)
  local g = h[{{ STATICS }}]
  local columns, d, capacity, ring = g[{{ columns }}], g[{{ fields }}], g[{{ capacity }}], g[{{ ring }}]
  local size, seq, latest, horizon = g[{{ size }}], h[{{ number }}], h[{{ latest }}], now - g[{{ id }}]
  local last = seq + h[{{ count }}] - 1
  if number < seq or number > last then return 0 end
  if number == last then
    local held = {{ held('column') }}
    if latest <= horizon then return 0 end
    if amount > h[held] then amount = h[held] end
    h[held] = h[held] - amount
    return amount
  end
  local pending, oldest, field, at, bytes = last - last % {{ GROUP }}, seq - seq % {{ GROUP }}, nil, 0, nil
  local ring_at = ring + number % capacity * size
  if number >= pending then
    field, at = {{ before_latest }}, (number - last + {{ GROUP - 1 }}) * size
  elseif number < oldest + {{ GROUP }} then
    field, at = {{ oldest_group }}, (number - oldest) * size
  end
  bytes = field and h[field] or redis.call('GETRANGE', key, ring_at, ring_at + size - 1)
  local offset, width = at + {{ bytes(ENTRY) }}, g[{{ width('column') }}]
  for x = 1, column - 1 do offset = offset + g[{{ width('x') }}] end
  local time = latest - (latest - struct.unpack('<{{ ENTRY }}', bytes, at + 1)) % {{ TIME_RANGE }}
  if time <= horizon then return 0 end
  local held = struct.unpack('<I' .. width, bytes, offset + 1)
  if amount > held then amount = held end
  local rest = struct.pack('<I' .. width, held - amount)
  if field then h[field] = string.sub(bytes, 1, offset) .. rest .. string.sub(bytes, offset + width + 1) end
  if number < pending then
    redis.call('SETRANGE', key, ring_at + offset - at, rest)
    local block = math.floor(number / {{ BLOCK }})
    if capacity > {{ BLOCK }} and last >= (block + 1) * {{ BLOCK }} then
      local lines, line_size = capacity / {{ BLOCK }}, {{ bytes(LINE) }} + {{ bytes(AMOUNT) }} * columns
      local sum_at = ring + (block % lines - lines) * line_size + {{ bytes(LINE) }} + {{ bytes(AMOUNT) }} * (column - 1)
      local sum = struct.unpack('<{{ AMOUNT }}', redis.call('GETRANGE', key, sum_at, sum_at + {{ bytes(AMOUNT) - 1 }}))
      redis.call('SETRANGE', key, sum_at, struct.pack('<{{ AMOUNT }}', sum - amount))
    end
  end
  return amount
end

-- All headers are read before anything is written.
for r = 0, refunds - 1 do
  local k = struct.unpack('<B', ARGV[2], {{ 1 + bytes(REFUNDS) }} + r * {{ bytes(REFUND) }})
  if headers[k] == nil then
    local h, wrong = read_header(KEYS[k])
    if wrong then return redis.error_reply(wrong) end
    headers[k] = h
  end
end
for r = 0, refunds - 1 do
  local k, kind, window, unit, number, amount =
    struct.unpack('<{{ REFUND }}', ARGV[2], {{ 1 + bytes(REFUNDS) }} + r * {{ bytes(REFUND) }})
  local h, taken = headers[k], 0
  local g, s = h and h[{{ STATICS }}], {{ FIRST_LOG }}
  -- An entry is in one place: in the log, in the period before, or in what is set aside.
  local found = false
  for _ = 1, h and g[1] or 0 do
    local d, columns, log_kind = g[{{ fields }}], g[{{ columns }}], g[{{ kind }}]
    if g[{{ id }}] == window and (log_kind == kind or log_kind == kind + {{ ASIDE }}) and not found then
      local column
      for x = 1, columns do
        if g[{{ unit('x') }}] == unit then column = x end
      end
      if log_kind == {{ SLIDING }} then
        found = number >= h[{{ number }}] and h[{{ count }}] > 0
        if found and column then
          taken = take_out(KEYS[k], h, s, column, number, amount)
          h[{{ total('column') }}] = h[{{ total('column') }}] - taken
        end
      else
        local holds = number >= h[{{ number }}] and number < h[{{ number }}] + h[{{ count }}]
        if log_kind == {{ CALENDAR }} then
          holds = number == h[{{ oldest }}]
        elseif kind == {{ CALENDAR }} then
          holds = number >= h[{{ oldest }}] and number < h[{{ latest }}]
        end
        if holds then
          found = true
          if column and h[{{ latest }}] > now then
            taken = math.min(amount, h[{{ total('column') }}])
            h[{{ total('column') }}] = h[{{ total('column') }}] - taken
          end
        elseif log_kind == {{ CALENDAR }} then
          local format = '<{{ PREVIOUS }}' .. string.rep('{{ AMOUNT }}', columns)
          local previous = { struct.unpack(format, h[{{ behind_totals }}]) }
          if number >= h[{{ number }}] and number < previous[1] then
            found = true
            if column and previous[1] > now then
              taken = math.min(amount, previous[column + 1])
              previous[column + 1] = previous[column + 1] - taken
              h[{{ behind_totals }}] = struct.pack(format, unpack(previous, 1, columns + 1))
            end
          end
        end
      end
    end
    s = {{ next_log('g[' ~ columns ~ ']') }}
  end
  refunded[r + 1] = taken
end
for k, h in pairs(headers) do
  if h then write_fields(KEYS[k], h) end
end
