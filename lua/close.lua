-- Ends a reservation: gives back what it did not use, charges what it used in addition, and releases its slots. This
-- part stands in front of refund.lua, which gives back, and apply.lua, which charges; closed.lua stands behind them.
--
-- Uses     now (clock.lua), recall (record.lua)
-- Defines  reservation_key; wrong, state, from, ttl, record: what `recall` found
--
-- KEYS     the ledgers; the scopes of its slots; its record
-- ARGV[1]  the debts as claims in mode force, see apply.lua
-- ARGV[2]  what to give back, see refund.lua
-- ARGV[3]  the digest of this end (16 bytes), and what the caller adds
-- reply    status u8: 0 there is none, or it has ended; 2 outside the periods of the debts, and now u48 (ms);
--          nothing was done. 1 it is closed now, 3 it was closed before: from when on u48 (ms), what was given
--          back for each row (number of rows u8, u56 each), and ARGV[3] of then
-- cost     a read and a write of the record; then as refund.lua and apply.lua
-- record   state 1: closed: the reply from the time on

local reservation_key = KEYS[#KEYS]
local wrong, state, from, ttl, record = recall(reservation_key)
if wrong then return redis.error_reply(wrong) end
if not state then return '\0' end
if state ~= 0 then return '\3' .. string.sub(record, {{ 1 + bytes(RECORD) }}) end
do
  local earliest, latest_end = struct.unpack('<I6I6', ARGV[1], 2)
  if now < earliest or now >= latest_end then return struct.pack('<{{ REPLY }}', 2, now) end
end
