-- Slots: which reservations hold one in a scope, as a sorted set by the time when each ends (ms). A member is the
-- reservation's id (16 bytes) and its time to live u32 (ms); what a later version may write behind them is left alone. The
-- empty member has the time when a slot was last taken, which shows that a clock went back. The algorithm is that of
-- tollgate-core's slots.rs.
--
-- Uses     now (clock.lua)
-- Defines  redate_slots(key), read_slots(key, cost, limit), take_slot(key, id, ttl)

-- No set outlives the longest reservation by more than a second.
local SET_TTL = 3601000

-- If the clock went back: slots that were taken later than now count as taken now.
local function redate_slots(key)
  local latest = redis.call('ZSCORE', key, '')
  if not latest or tonumber(latest) <= now then return end
  local held = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  for i = 1, #held, 2 do
    local ttl = held[i] == '' and 0 or struct.unpack('<I4', held[i], 17)
    if held[i + 1] - ttl > now then redis.call('ZADD', key, now + ttl, held[i]) end
  end
  redis.call('PEXPIRE', key, SET_TTL)
end

-- How many slots are held, when the last of them ends, and when `cost` more fit below `limit` (0 now, 2^48 - 1 never,
-- otherwise from then on).
local function read_slots(key, cost, limit)
  redate_slots(key)
  local after = string.format('(%.0f', now)
  local used = redis.call('ZCOUNT', key, after, '+inf')
  local resets_at, fit = now, 0
  if used > 0 then resets_at = tonumber(redis.call('ZREVRANGE', key, 0, 0, 'WITHSCORES')[2]) end
  -- In this order no intermediate result leaves the integers that a double holds.
  local over = cost - (limit - used)
  if cost > 0 and over > 0 then
    fit = {{ NEVER }}
    if cost <= limit then
      local freeing = redis.call('ZRANGEBYSCORE', key, after, '+inf', 'WITHSCORES', 'LIMIT', over - 1, 1)
      fit = tonumber(freeing[2])
    end
  end
  return used, resets_at, fit
end

local function take_slot(key, id, ttl)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  redis.call('ZADD', key, now, '', now + ttl, id .. struct.pack('<I4', ttl))
  redis.call('PEXPIRE', key, SET_TTL)
end
