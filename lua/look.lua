-- What became of a reservation.
--
-- Uses     now (clock.lua), recall (record.lua)
-- Defines  nothing; it returns
--
-- KEYS     its record
-- reply    empty: there is none, or it has ended; otherwise its state u8 (0 open, 1 closed), now u48, when it ends u48
--          (ms), and what its record holds behind the first {{ bytes(RECORD) }} bytes (see admit.lua and close.lua)

local wrong, state, from, ttl, value = recall(KEYS[1])
if wrong then return redis.error_reply(wrong) end
if not state then return '' end
return struct.pack('<BI6I6', state, now, from + ttl) .. string.sub(value, {{ 1 + bytes(RECORD) }})
