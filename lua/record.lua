-- Records: a reservation, or a call with a request id, in one string value: state u8 (see the scripts), from u48
-- and for how long u32 (ms) it counts, then what the scripts say. The algorithm is that of tollgate-core's
-- reservation.rs.
--
-- recall(key)  state, from, ttl and the value, if the record still counts. When the clock went back, it counts
--              from now, for good: nothing lasts longer than its time to live.

local function recall(key)
  local value = redis.call('GET', key)
  if not value then return nil end
  local state, from, ttl = struct.unpack('<BI6I4', value)
  if from > now then
    from = now
    redis.call('SETRANGE', key, 1, struct.pack('<I6', now))
    redis.call('PEXPIRE', key, ttl > shortest_ttl and ttl or shortest_ttl)
  end
  if now >= from + ttl then return nil end
  return state, from, ttl, value
end
