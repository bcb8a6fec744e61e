-- The general script: decides a list of claims, all or nothing, in one step. answer.lua ends the script that does no more
-- than that; scripts that do more have a part in front and one behind.
--
-- Uses     now, shortest_ttl (clock.lua), close_block (block.lua), read_header, write_fields, walk (ledger.lua), rare (rebuild.lua)
-- Defines  request, rows, reply, plan, windows, named, ledgers, charging, and short names for functions (pack,
--          unpack_bytes, rep, sub, call)
--
-- KEYS     the ledgers, each once; behind them, if any is caller-named, the sorted set of their names
-- ARGV[1]  mode u8 (0 try, 1 force, 2 peek, 3 judge: as peek, but the call is a refused one), start u48 and end u48 (ms) of the time in which all calendar
--          periods are the current ones, then one row of {{ bytes(ROW) }} bytes for each claim, rows of one ledger side by
--          side, and within it those of one window; little endian: ledger u8 (number of its key), kind u8
--          (1 sliding, 2 calendar), id u32 (window in ms, or the calendar's id), start u48 and end u48 of the
--          period (0 for sliding), unit u32, cost u56 to judge, charge u56 (0 where an earlier row charges the
--          same counter, and where the cost is only judged), limit u56 (2^53 - 1: unlimited). If ledgers are
--          caller-named: how many of these their partition may have u32, the number of the set's key u8, and a bit for
--          each ledger, from the lowest of the first byte on, 8 bytes
-- reply    status u8 (0 denied, 1 allowed, 2 outside the time above: nothing was done), now u48 (ms), then for
--          each row: used u56 (with its own charge), resets_at u48, fit u48 (0 now, 2^48 - 1 never, otherwise from
--          then on); or the error TGCROWDED: a caller-named ledger would have to be made and their number has reached
--          its cap; nothing was charged
-- cost     one read and one write per ledger, both of the header. Besides, per window, a group of four entries
--          written for every fourth entry that comes, and one read for every fourth that leaves. A refusal
--          writes nothing, and reads at most a directory and two blocks for each claim that does not fit. Making
--          a caller-named ledger takes four steps in the set, and one or two for each name that is looked at
-- the set  the names of caller-named ledgers, by when to look again whether they still exist. It lives for 40 days from
--          when the last one was made

local TRY, FORCE, PEEK, OUTSIDE = 0, 1, 2, 2
local LOOKS, MOST_LOOKS, LOOK_AGAIN, SET_LIVES = '3', '64', 60000, '3456000000'
local JOINS, OPENS = 1, 2
local pack, unpack_bytes, rep, sub, call = struct.pack, struct.unpack, string.rep, string.sub, redis.call

local request = ARGV[1]
local rows = math.floor((#request - {{ bytes(REQUEST) }}) / {{ bytes(ROW) }})
local mode, earliest, latest_end = unpack_bytes('<{{ REQUEST }}', request)
if now < earliest or now >= latest_end then return pack('<{{ REPLY }}', OUTSIDE, now) end

-- `reply` has three numbers for each row. Behind them, from `plan` on, stand two that are not sent: the index in h
-- of the total that the row charges, and how much. `windows` has five values for each window that the rows name: its
-- ledger, s, d, whether a charge JOINS its latest entry or OPENS one (false if nothing is charged), its first
-- row. The constructors make room for a few rows and windows, so that the tables mostly need not grow.
local reply, plan = { 1, now, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }, 1 + rows * 3
local windows = { 0, 0, 0, false, 0, 0, 0, 0, false, 0 }
local ledgers, named, charging = { nil, nil }, 0, false
local rebuild, read_behind
local needs_rebuild, stale
-- Of windows that must go on to another period, and of which something is set aside: { kind, id, start, end }, by ledger. Of
-- rows with something set aside: how much the log itself holds.
local rolls, own_of

-- A ledger without a place for its charges is rebuilt, and the rows are decided once more.
for _ = 1, 2 do
  local k, kind, id, key, h, g, s, d, columns, aside
  reply[1], named, needs_rebuild = 1, -4, nil
  for r = 1, rows do
    local ledger, row_kind, row_id, start, finish, unit, cost, charge, limit =
      unpack_bytes('<{{ ROW }}', request, r * {{ bytes(ROW) }} - {{ bytes(ROW) - bytes(REQUEST) - 1 }})
    if ledger ~= k then
      k, kind = ledger, nil
      key, h = KEYS[k], ledgers[k]
      if h == nil then
        local wrong
        h, wrong = read_header(key)
        if wrong then return redis.error_reply(wrong) end
        if h then
          local known, is_brought = stale and #stale or 0, false
          repeat
            local s, ahead, asides = {{ FIRST_LOG }}, nil, nil
            g = h[{{ STATICS }}]
            for _ = 1, g[1] do
              local d, log_kind, log_id, columns = g[{{ fields }}], g[{{ kind }}], g[{{ id }}], g[{{ columns }}]
              local expires_at, is_ahead = h[{{ latest }}], false
              if log_kind == {{ SLIDING }} then
                is_ahead = expires_at > now + log_id and h[{{ count }}] > 0
                expires_at = expires_at + log_id
              elseif log_kind == {{ CALENDAR }} then
                is_ahead = h[{{ oldest }}] > now
              else
                log_kind = log_kind - {{ ASIDE }}
                is_ahead = log_kind == {{ SLIDING }} and h[{{ behind_totals }}] > now + log_id
                if expires_at > now then
                  asides = asides or {}
                  asides[log_id * 4 + log_kind] = true
                end
              end
              if is_ahead then
                ahead = ahead or {}
                ahead[log_id * 4 + log_kind] = true
              end
              if expires_at <= now then
                stale = stale or {}
                stale[#stale + 1] = k * 4096 + s
              end
              s = {{ next_log('columns') }}
            end
            -- A log of which something is set aside lives as long as that.
            for i = asides and stale and #stale or 0, known + 1, -1 do
              local s = stale[i] % 4096
              if g[{{ kind }}] <= {{ ASIDE }} and asides[g[{{ id }}] * 4 + g[{{ kind }}]] then table.remove(stale, i) end
            end
            -- The clock stepped back: the windows of this call are brought to now for good, unless the call only looks.
            local steps = ahead and mode ~= PEEK and not is_brought and {}
            for r = r, steps and rows or 0 do
              local ledger, kind, id, start, finish =
                unpack_bytes('<{{ ROW }}', request, r * {{ bytes(ROW) }} - {{ bytes(ROW) - bytes(REQUEST) - 1 }})
              if ledger ~= k then break end
              if ahead[id * 4 + kind] then steps[#steps + 1] = { kind, id, start, finish } end
            end
            is_brought = steps and #steps > 0
            if is_brought then
              if not rebuild then rebuild, read_behind = rare(now, shortest_ttl, walk) end
              h = rebuild(key, h, {}, steps)
              for i = stale and #stale or 0, known + 1, -1 do stale[i] = nil end
            end
          until not is_brought
        end
        ledgers[k] = h
      end
      g = h and h[{{ STATICS }}]
    end
    if row_id ~= id or row_kind ~= kind then
      kind, id, columns, aside = row_kind, row_id, 0, nil
      local found
      if h then
        s = {{ FIRST_LOG }}
        for _ = 1, g[1] do
          if g[{{ id }}] == id then
            if g[{{ kind }}] == kind then found = s elseif g[{{ kind }}] == kind + {{ ASIDE }} then aside = s end
          end
          s = {{ next_log('g[' ~ columns ~ ']') }}
        end
      end
      s = found
      if found then columns, d = g[{{ columns }}], g[{{ fields }}] end
      if not found then
        columns = 0
      elseif kind == {{ SLIDING }} then
        local horizon = now - id
        if h[{{ count }}] > 0 and h[{{ oldest }}] <= horizon then
          if h[{{ latest }}] > horizon then
            walk(key, h, s, horizon)
          else
            h[{{ number }}], h[{{ count }}] = h[{{ number }}] + h[{{ count }}], 0
            for x = 1, columns do h[{{ total('x') }}] = 0 end
          end
        end
      elseif h[{{ oldest }}] < start then
        if aside then
          rolls = rolls or {}
          rolls[k] = rolls[k] or {}
          rolls[k][#rolls[k] + 1] = { kind, id, start, finish }
        else
          h[{{ number }}], h[{{ behind_totals }}] = h[{{ oldest }}],
            pack('<{{ PREVIOUS }}' .. rep('{{ AMOUNT }}', columns), h[{{ latest }}], unpack(h, {{ total('1') }}, {{ total('columns') }}))
          for x = 1, columns do h[{{ total('x') }}] = 0 end
          h[{{ oldest }}], h[{{ latest }}] = start, finish
        end
      end
      -- Only a call that looks meets a log that is still ahead.
      if found and not aside and (kind == {{ SLIDING }} and h[{{ latest }}] > now + id and h[{{ count }}] > 0
        or kind == {{ CALENDAR }} and h[{{ oldest }}] > start) then
        aside = 0
      end
      named = named + 5
      windows[named], windows[named + 1], windows[named + 2], windows[named + 3] = k, s, d, false
      windows[named + 4] = r
    end

    local used, column = 0, nil
    for x = 1, columns do
      if g[{{ unit('x') }}] == unit then
        used, column = h[{{ total('x') }}], x
        break
      end
    end
    local fit, at, resets_at = 0, r * 3, now
    if aside then
      if not read_behind then rebuild, read_behind = rare(now, shortest_ttl, walk) end
      own_of = own_of or {}
      used, resets_at, fit, own_of[r] = read_behind(key, h, s or 0, aside, start, finish, unit, cost, limit)
      if fit > 0 then reply[1] = 0 end
    else
      -- In this order no intermediate result leaves the integers that a double holds.
      local over = cost - (limit - used)
      if over > 0 and cost > 0 then
        reply[1] = 0
        if cost > limit then
          fit = {{ NEVER }}
        elseif kind == {{ SLIDING }} then
          fit = walk(key, h, s, nil, column, over) + id
        else
          fit = finish
        end
      end
      if kind ~= {{ SLIDING }} then resets_at = finish elseif used > 0 then resets_at = h[{{ latest }}] + id end
    end
    reply[at], reply[at + 1], reply[at + 2] = used, resets_at, fit

    if charge > {{ MAX_AMOUNT }} - used then charge = {{ MAX_AMOUNT }} - used end
    reply[plan + r * 2 + 1] = charge
    if charge > 0 and (mode == FORCE or (mode == TRY and reply[1] == 1)) then
      -- What the charge would write, and whether the value has a place for it: the log, a free slot in its
      -- ring, a column that is wide enough.
      local place = column ~= nil
      if place then
        local sliding, entry = kind == {{ SLIDING }}, windows[named + 3]
        if not entry then
          entry = JOINS
          if sliding then
            local count, latest, capacity = h[{{ count }}], h[{{ latest }}], g[{{ capacity }}]
            local joins = count > 0 and (latest >= now or count >= {{ MOST_ENTRIES }})
            if count >= {{ EXACT_ENTRIES }} and not joins then
              local cell = math.floor(id / {{ EXACT_ENTRIES }}) + 1
              joins = math.floor(latest / cell) == math.floor(now / cell)
            end
            if not joins then
              entry = OPENS
              place = count < capacity and (capacity < {{ SHRINK_FROM }} or count * {{ SHRINK_SHARE }} >= capacity)
            end
          end
          windows[named + 3] = entry
        end
        local total = {{ total('column') }}
        reply[plan + r * 2] = total
        if sliding then
          local sum = charge
          if entry == JOINS then sum = sum + h[total + columns] end
          if sum >= 256 and sum >= 256 ^ g[{{ width('column') }}] then place = false end
        end
      end
      if not place then
        needs_rebuild = needs_rebuild or {}
        needs_rebuild[k] = true
      end
    end
  end

  charging = mode == FORCE or (mode == TRY and reply[1] == 1)
  if not charging then break end
  -- A log that has expired, and is not charged, is removed with the next charge of its ledger.
  for i = 1, stale and #stale or 0 do
    local charged, spared = false, false
    for w = 1, named, 5 do
      if windows[w + 3] and windows[w] == math.floor(stale[i] / 4096) then
        charged, spared = true, spared or windows[w + 1] == stale[i] % 4096
      end
    end
    if charged and not spared then
      needs_rebuild = needs_rebuild or {}
      needs_rebuild[math.floor(stale[i] / 4096)] = true
    end
  end
  for w = 1, rolls and named or 0, 5 do
    if windows[w + 3] and rolls[windows[w]] then
      needs_rebuild = needs_rebuild or {}
      needs_rebuild[windows[w]] = true
    end
  end
  if not needs_rebuild then break end
  local places = {{ 1 + bytes(REQUEST) }} + rows * {{ bytes(ROW) }}
  if #request > places and mode ~= FORCE then
    local most, set = unpack_bytes('<{{ CALLER_NAMED }}', request, places)
    local made = {}
    set = KEYS[set]
    for k in pairs(needs_rebuild) do
      local bits = string.byte(request, places + {{ bytes(CALLER_NAMED) }} + math.floor((k - 1) / 8))
      if not ledgers[k] and math.floor(bits / 2 ^ ((k - 1) % 8)) % 2 == 1 and not call('ZSCORE', set, KEYS[k]) then
        made[#made + 1] = KEYS[k]
      end
    end
    if #made > 0 then
      -- A few names are looked at each time, so that names of expired ledgers are removed; more if the cap is near.
      local room = most - #made
      local looks = call('ZCOUNT', set, '-inf', '+inf') > room and MOST_LOOKS or LOOKS
      local names = call('ZRANGEBYSCORE', set, '-inf', now, 'LIMIT', '0', looks)
      if #names == 0 and looks == MOST_LOOKS then
        -- The clock went back: names that are due later than that are due now.
        names = call('ZRANGEBYSCORE', set, '(' .. now + LOOK_AGAIN, '+inf', 'LIMIT', '0', looks)
      end
      for i = 1, #names do
        if call('EXISTS', names[i]) == 1 then
          call('ZADD', set, now + LOOK_AGAIN, names[i])
        else
          call('ZREM', set, names[i])
        end
      end
      if call('ZCOUNT', set, '-inf', '+inf') > room then
        return redis.error_reply('TGCROWDED there is no place for one more caller-named ledger')
      end
      for i = 1, #made do call('ZADD', set, now + LOOK_AGAIN, made[i]) end
      call('PEXPIRE', set, SET_LIVES)
    end
  end
  for k in pairs(needs_rebuild) do
    local wanted = {}
    for r = 1, rows do
      local ledger, kind, id, start, finish, unit =
        unpack_bytes('<{{ ROW }}', request, r * {{ bytes(ROW) }} - {{ bytes(ROW) - bytes(REQUEST) - 1 }})
      if ledger == k and reply[plan + r * 2 + 1] > 0 then
        wanted[#wanted + 1] = { kind, id, start, finish, unit, reply[plan + r * 2 + 1] }
      end
    end
    if not rebuild then rebuild, read_behind = rare(now, shortest_ttl, walk) end
    ledgers[k] = rebuild(KEYS[k], ledgers[k], wanted, rolls and rolls[k])
  end
  stale, rolls, own_of = nil, nil, nil
end

local w = charging and 1 or named + 1
while w <= named do
  local k, until_ms, charged = windows[w], now + shortest_ttl, false
  local key, h = KEYS[k], ledgers[k]
  local g = h and h[{{ STATICS }}]
  while w <= named and windows[w] == k do
    local s, d, entry, first, last = windows[w + 1], windows[w + 2], windows[w + 3], windows[w + 4], rows
    w = w + 5
    if w <= named then last = windows[w + 4] - 1 end
    if entry then
      local sliding, expires_at, columns = g[{{ kind }}] == {{ SLIDING }}, h[{{ latest }}], g[{{ columns }}]
      charged = true
      if sliding then
        if h[{{ count }}] == 0 or expires_at < now then expires_at = now end
        expires_at = expires_at + g[{{ id }}]
        if entry == OPENS then
          local count, before_latest = h[{{ count }}], {{ before_latest }}
          local seq, size = h[{{ number }}] + count, g[{{ size }}]
          local group = h[before_latest]
            .. pack(g[{{ entry }}], h[{{ latest }}] % {{ TIME_RANGE }}, unpack(h, {{ held('1') }}, {{ held('columns') }}))
          if count == 0 then
            h[{{ oldest }}] = now
          elseif seq % {{ GROUP }} == 0 then
            call('SETRANGE', key, g[{{ ring }}] + (seq - {{ GROUP }}) % g[{{ capacity }}] * size, group)
            if h[{{ number }}] >= seq - {{ GROUP }} then h[{{ oldest_group }}] = group end
            if seq % {{ BLOCK }} == 0 and g[{{ capacity }}] > {{ BLOCK }} then
              close_block(key, seq, h[{{ number }}], h[{{ latest }}], columns,
                g[{{ capacity }}], g[{{ ring }}], size, g[{{ entry }}])
            end
          end
          h[{{ count }}], h[before_latest] = count + 1, sub(group, size + 1)
          for x = 1, columns do h[{{ held('x') }}] = 0 end
        end
        h[{{ latest }}] = expires_at - g[{{ id }}]
      end
      if expires_at > until_ms then until_ms = expires_at end
      for r = first, last do
        local charge, at = reply[plan + r * 2 + 1], r * 3
        if charge > 0 then
          local total = reply[plan + r * 2]
          h[total] = h[total] + charge
          if sliding then h[total + columns] = h[total + columns] + charge end
          reply[at] = reply[at] + charge
        end
        if own_of and own_of[r] then
          if sliding and own_of[r] + charge > 0 and expires_at > reply[at + 1] then reply[at + 1] = expires_at end
        elseif sliding and reply[at] > 0 then
          reply[at + 1] = expires_at
        end
      end
    end
  end
  if charged then
    if until_ms > h[{{ LIVES_UNTIL }}] then
      -- The key lives a little longer than needed, so that most calls need not renew its life.
      h[{{ LIVES_UNTIL }}] = until_ms + math.floor((until_ms - now) / {{ LIFE_SHARE }}) + {{ LIFE_MORE }}
      call('PEXPIRE', key, h[{{ LIVES_UNTIL }}] - now)
    end
    write_fields(key, h)
  end
end
