-- Slots: which reservations hold one in a scope, as a sorted set by the time when each ends (ms). A member is the
-- reservation's id (16 bytes) and its time to live u32 (ms); what a later version may write behind them is left alone. The
-- empty member has the latest time when a slot was taken, which shows that the clock stepped back. Then the member 'n' and
-- that time has, negative, the time when the step was noticed. The algorithm is that of tollgate-core's slots.rs.
--
-- Uses     now (clock.lua)
-- Defines  read_slots(key, cost, limit, looks), take_slot(key, id, ttl)

-- No set outlives the longest reservation by more than a second.
local SET_TTL = 3601000

-- The ends of all slots that are held while the clock is behind the time when one was taken, in their order. A slot that was
-- taken more than its time to live later than now counts for that time from when the step was noticed; a call that only
-- `looks` notices nothing.
local function ends_behind(key, latest, looks)
  local mark, ends = 'n' .. latest, {}
  local noticed = redis.call('ZSCORE', key, mark)
  noticed = noticed and -noticed or now
  if noticed > now then noticed = now end
  local held = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  for i = 1, #held, 2 do
    if #held[i] >= 20 then
      local ends_at, ttl = tonumber(held[i + 1]), struct.unpack('<I4', held[i], 17)
      if ends_at - ttl - now > ttl then ends_at = noticed + ttl end
      if ends_at > now then ends[#ends + 1] = ends_at end
    elseif held[i] ~= '' and held[i] ~= mark and not looks then
      redis.call('ZREM', key, held[i])
    end
  end
  if not looks then redis.call('ZADD', key, -noticed, mark) end
  table.sort(ends)
  return ends
end

-- How many slots are held, when the last of them ends, and when `cost` more fit below `limit` (0 now, 2^48 - 1 never,
-- otherwise from then on).
local function read_slots(key, cost, limit, looks)
  local latest, after = redis.call('ZSCORE', key, ''), string.format('(%.0f', now)
  local ends = latest and tonumber(latest) > now and ends_behind(key, latest, looks)
  local used, resets_at, fit = ends and #ends or redis.call('ZCOUNT', key, after, '+inf'), now, 0
  if used > 0 then resets_at = ends and ends[used] or tonumber(redis.call('ZREVRANGE', key, 0, 0, 'WITHSCORES')[2]) end
  -- In this order no intermediate result leaves the integers that a double holds.
  local over = cost - (limit - used)
  if cost > 0 and over > 0 then
    fit = {{ NEVER }}
    if cost <= limit then
      fit = ends and ends[over]
        or tonumber(redis.call('ZRANGEBYSCORE', key, after, '+inf', 'WITHSCORES', 'LIMIT', over - 1, 1)[2])
    end
  end
  return used, resets_at, fit
end

local function take_slot(key, id, ttl)
  redis.call('ZREMRANGEBYSCORE', key, 0, now)
  redis.call('ZADD', key, 'GT', now, '', now + ttl, id .. struct.pack('<I4', ttl))
  redis.call('PEXPIRE', key, SET_TTL)
end
