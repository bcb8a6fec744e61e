-- Remembers an admission: see admit.lua.
--
-- Uses     now, shortest_ttl (clock.lua), head (record.lua), take_slot (slots.lua), what admit.lua defines; reply, plan,
--          windows, named, ledgers, rows, charging (apply.lua)
-- Defines  nothing; it returns

if not slots_fit then reply[1] = 0 end
local admitted = charging and reply[1] == 1
if admitted and holds == 1 then
  local taken = {}
  for r = 0, slot_rows - 1 do
    local scope, cost = struct.unpack('<{{ SLOT_ROW }}', ARGV[2], {{ 1 + bytes(ADMISSION) }} + r * {{ bytes(SLOT_ROW) }})
    if cost > 0 and not taken[scope] then
      taken[scope] = true
      take_slot(KEYS[first_scope + scope], id, hold_ttl)
    end
  end
  for r = 0, slot_rows - 1 do
    if taken[struct.unpack('<B', ARGV[2], {{ 1 + bytes(ADMISSION) }} + r * {{ bytes(SLOT_ROW) }})] then
      slot_statuses[r * 3 + 1] = slot_statuses[r * 3 + 1] + 1
      if slot_statuses[r * 3 + 2] < now + hold_ttl then slot_statuses[r * 3 + 2] = now + hold_ttl end
    end
  end
end
local charges = ''
if admitted and holds + tells > 0 then
  local made = {}
  for w = 1, named, 5 do
    local number, last = 0, w + 5 <= named and windows[w + 9] - 1 or rows
    if windows[w + 3] then
      local h, s, d = ledgers[windows[w]], windows[w + 1], windows[w + 2]
      local g = h[{{ STATICS }}]
      number = h[{{ number }}]
      if g[{{ kind }}] == {{ CALENDAR }} then
        number = h[{{ oldest }}]
      elseif h[{{ count }}] > 0 then
        number = number + h[{{ count }}] - 1
      end
    end
    for r = windows[w + 4], last do
      local charge = windows[w + 3] and reply[plan + r * 2 + 1] or 0
      made[r * 2 - 1], made[r * 2] = charge > 0 and number or 0, charge
    end
  end
  charges = struct.pack('<' .. string.rep('{{ CHARGE }}', rows), unpack(made))
end
if admitted and holds == 1 then
  redis.call('SET', reservation_key, head(0, now, hold_ttl) .. ARGV[3] .. charges,
    'PX', hold_ttl > shortest_ttl and hold_ttl or shortest_ttl)
end

local answer = struct.pack('<{{ REPLY }}' .. string.rep('{{ STATUS }}', rows), unpack(reply, 1, 2 + rows * 3))
  .. struct.pack('<' .. string.rep('{{ STATUS }}', slot_rows), unpack(slot_statuses))
if admitted and has_id == 1 then
  redis.call('SET', request_key,
    head(2, now, request_ttl) .. digest .. shape .. struct.pack('<Bc16I6', holds, id, now + hold_ttl)
      .. answer .. ARGV[4], 'PX', request_ttl > shortest_ttl and request_ttl or shortest_ttl)
end
return tells == 1 and answer .. charges or answer
