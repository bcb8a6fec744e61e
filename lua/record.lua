-- Records: a reservation, or a call with a request id, in one string value: version of the layout and state u8
-- (4 * version + state; the version is 1, the states are those of the scripts), from u48 and for how long u32 (ms)
-- it counts, then what the scripts say. The algorithm is that of tollgate-core's reservation.rs.
--
-- A record has at most 65,536 bytes.
--
-- recall(key)  false, state, from, ttl and the value, if the record still counts; else false alone. Or what is wrong,
--              if it cannot be read. When the clock went back, it counts from now, for good: nothing lasts longer
--              than its time to live.
-- head(state, from, ttl)  what a record begins with

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
  if from > now then
    from = now
    redis.call('SETRANGE', key, 1, struct.pack('<I6', now))
    redis.call('PEXPIRE', key, ttl > shortest_ttl and ttl or shortest_ttl)
  end
  if now >= from + ttl then return false end
  return false, state, from, ttl, value
end
