-- Gives a reservation, and the slots that it holds, a new time to live from now on.
--
-- Uses     now, shortest_ttl (clock.lua), recall (record.lua), take_slot (slots.lua)
-- Defines  nothing; it returns
--
-- KEYS     its record, then the scopes of its slots
-- ARGV[1]  its id (16 bytes), and its time to live u32 (ms)
-- reply    empty: there is none, or it has ended; otherwise 0 u8 and when it ends u48 (ms); or 1 u8 if it is closed, and
--          what its record holds behind the first {{ bytes(RECORD) }} bytes

local wrong, state, _, old_ttl, value = recall(KEYS[1])
if wrong then return redis.error_reply(wrong) end
if not state then return '' end
if state ~= 0 then return '\1' .. string.sub(value, {{ 1 + bytes(RECORD) }}) end
local id, ttl = struct.unpack('<{{ SLOT }}', ARGV[1])
for k = 2, #KEYS do
  local member = id .. struct.pack('<I4', old_ttl)
  local ends_at = redis.call('ZSCORE', KEYS[k], member)
  if ends_at then
    redis.call('ZREM', KEYS[k], member)
    -- A slot that has ended stays lost, as another reservation may hold it now.
    if tonumber(ends_at) > now then take_slot(KEYS[k], id, ttl) end
  end
end
redis.call('SETRANGE', KEYS[1], 1, struct.pack('<I6I4', now, ttl))
redis.call('PEXPIRE', KEYS[1], ttl > shortest_ttl and ttl or shortest_ttl)
return struct.pack('<BI6', 0, now + ttl)
