-- Decides a list of claims and remembers an admission: as a reservation that can be settled, with the slots that it holds;
-- and by the id of the request. This part stands in front of apply.lua, and admitted.lua behind it.
--
-- Uses     now (clock.lua), recall (record.lua), read_slots (slots.lua)
-- Defines  holds, id, hold_ttl, has_id, digest, request_ttl, shape, tells, scopes: the fields of ARGV[2];
--          reservation_key, request_key, first_scope; slot_rows, slot_statuses, slots_fit: the claims on slots;
--          from, till. It may change ARGV[1] for apply.lua
--
-- KEYS     the ledgers; the scopes of slots; the reservation's record, if there is to be one; the request's record, if it
--          has an id
-- ARGV[1]  the claims, see apply.lua
-- ARGV[2]  whether a reservation is made u8, its id (16 bytes) and time to live u32 (ms); whether the request has
--          an id u8, the digest of the call (16 bytes), for how long it is remembered u32 (ms), the fingerprint of the
--          claims (8 bytes); whether the reply says where it was charged u8; the number of scopes of slots u8; a row of
--          {{ bytes(SLOT_ROW) }} bytes for each claim on slots: scope u8 (number of its key, from 1), cost u56, limit u56
--          (2^53 - 1: unlimited); little endian
-- ARGV[3]  the first bytes of the reservation's record
-- ARGV[4]  the last bytes of the request's record
-- reply    as of apply.lua, with the statuses of the claims on slots behind the others. Behind them, if this was asked and
--          the claims were admitted, per row of ARGV[1] number u48 of the entry that was charged and amount u56. Or
--          status 3: the request was admitted before; fingerprint (8 bytes), whether it made a reservation u8, its id
--          (16 bytes), when it was to end u48, the reply and ARGV[4] of then. Or status 4: the request's id belongs to
--          another call
-- cost     for a request id one read, and one write when admitted; for a reservation one write when admitted; for
--          each claim on slots two to four looks at the set, and three writes when admitted
-- records  state 0: a reservation that holds: ARGV[3]; per row of ARGV[1] number and amount as above. State 2: a
--          request: digest, and the reply from its fingerprint on

local holds, id, hold_ttl, has_id, digest, request_ttl, shape, tells, scopes =
  struct.unpack('<{{ ADMISSION }}', ARGV[2])
local reservation_key, request_key = KEYS[#KEYS - has_id], KEYS[#KEYS]
local first_scope = #KEYS - has_id - holds - scopes
if has_id == 1 then
  local wrong, known, _, _, record = recall(request_key)
  if wrong then return redis.error_reply(wrong) end
  if known then
    if string.sub(record, {{ 1 + bytes(RECORD) }}, {{ 16 + bytes(RECORD) }}) ~= digest then return struct.pack('<{{ REPLY }}', 4, now) end
    return '\3' .. string.sub(record, {{ 17 + bytes(RECORD) }})
  end
end

local slot_rows, slot_statuses, slots_fit = (#ARGV[2] - {{ bytes(ADMISSION) }}) / {{ bytes(SLOT_ROW) }}, {}, true
local from, till = struct.unpack('<I6I6', ARGV[1], 2)
if slot_rows > 0 and now >= from and now < till then
  for r = 0, slot_rows - 1 do
    local scope, cost, limit = struct.unpack('<{{ SLOT_ROW }}', ARGV[2], {{ 1 + bytes(ADMISSION) }} + r * {{ bytes(SLOT_ROW) }})
    local used, resets_at, fit = read_slots(KEYS[first_scope + scope], cost, limit, string.byte(ARGV[1]) == 2)
    slot_statuses[r * 3 + 1], slot_statuses[r * 3 + 2], slot_statuses[r * 3 + 3] = used, resets_at, fit
    if fit > 0 then slots_fit = false end
  end
  -- Where a slot is missing, the call is refused: nothing is charged, and every quota is reported.
  if not slots_fit and string.byte(ARGV[1]) == 0 then ARGV[1] = '\3' .. string.sub(ARGV[1], 2) end
end
