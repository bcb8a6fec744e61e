-- Records: a reservation, or a call with a request id, in one string value of at most {{ MAX_RECORD_BYTES }} bytes. It begins
-- with version and state u8 (4 * version + state; the version is {{ RECORD_VERSION }}, the states are those of the scripts),
-- from when u48 and for how long u32 (ms) it counts; the rest is stated by the script that writes it. The algorithm is that
-- of tollgate-core's reservation.rs.
--
-- Uses     now (clock.lua)
-- Defines  recall(key): false, state, from, ttl and the value, if the record still counts; otherwise false alone; or what
--          is wrong, if it cannot be read
--          head(state, from, ttl): the first bytes of a record

local function head(state, from, ttl)
  return struct.pack('<{{ RECORD }}', {{ 4 * RECORD_VERSION }} + state, from, ttl)
end

local function recall(key)
  local value = redis.call('GETRANGE', key, 0, {{ MAX_RECORD_BYTES }})
  if value == '' then return false end
  if #value > {{ MAX_RECORD_BYTES }} then return 'TGUNREADABLE a record is too long' end
  local state, from, ttl = struct.unpack('<{{ RECORD }}', value)
  state = state - {{ 4 * RECORD_VERSION }}
  if state < 0 or state > 3 then
    return 'TGVERSION a record is of version ' .. math.floor(state / 4) + {{ RECORD_VERSION }}
  end
  if now >= from + ttl then return false end
  return false, state, from, ttl, value
end
