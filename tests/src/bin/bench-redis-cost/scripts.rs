//! The scripts of the algorithms that Tollgate is compared with, and the clock of all scripts.

/// `TIME` is called and its result replaced, so that the figures include its cost.
pub(crate) const CLOCK: &str = "redis.call('TIME') local now = tonumber(ARGV[#ARGV]) local shortest_ttl = 3600000 ";

/// The cost of running any script.
pub(crate) const EMPTY: &str = "return 1";

/// Fixed windows: counters that expire. A refused call is counted too.
pub(crate) const FIXED: &str = "
local now = redis.call('TIME') now = tonumber(ARGV[#ARGV])
local over = 0
for i = 1, #KEYS do
  local cost, limit, window = tonumber(ARGV[i * 3 - 2]), tonumber(ARGV[i * 3 - 1]), tonumber(ARGV[i * 3])
  local used = redis.call('INCRBY', KEYS[i], cost)
  if used == cost then redis.call('EXPIRE', KEYS[i], window / 1000) end
  if used > limit then over = i end
end
return over";

/// A sorted-set log per quota, all or nothing, that reports as much as Tollgate does: usage and reset of each quota, or
/// the wait. Where every event costs one, the members are counted. Otherwise a second key holds the sum of costs. KEYS:
/// the logs, then the sums. ARGV: per log cost, limit, window and the number of its sum (or 0); then a text that makes
/// the member unique; then the time. Keys live for an hour at least, as the simulated time runs ahead of Redis's.
pub(crate) const SORTED_SETS: &str = "
local now = redis.call('TIME') now = tonumber(ARGV[#ARGV])
local logs = (#ARGV - 2) / 4
local reply = { 1, now }
for i = 1, logs do
  local cost, limit, window = tonumber(ARGV[i * 4 - 3]), tonumber(ARGV[i * 4 - 2]), tonumber(ARGV[i * 4 - 1])
  local sum = tonumber(ARGV[i * 4])
  local used
  if sum == 0 then
    redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now - window)
    used = redis.call('ZCARD', KEYS[i])
  else
    local left = redis.call('ZRANGEBYSCORE', KEYS[i], '-inf', now - window)
    if #left > 0 then
      local freed = 0
      for m = 1, #left do freed = freed + string.match(left[m], '%d+$') end
      redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now - window)
      used = redis.call('DECRBY', KEYS[logs + sum], freed)
    else
      used = tonumber(redis.call('GET', KEYS[logs + sum]) or 0)
    end
  end
  if used + cost > limit then
    local last = sum == 0 and used + cost - limit - 1 or 0
    local first_to_leave = redis.call('ZRANGE', KEYS[i], last, last, 'WITHSCORES')
    return { 0, now, i, used, first_to_leave[2] + window }
  end
  reply[#reply + 1], reply[#reply + 2] = used + cost, now + window
end
local time, unique = ARGV[#ARGV], ARGV[#ARGV - 1]
for i = 1, logs do
  local cost, sum = ARGV[i * 4 - 3], tonumber(ARGV[i * 4])
  redis.call('ZADD', KEYS[i], time, time .. ':' .. unique .. ':' .. cost)
  redis.call('PEXPIRE', KEYS[i], '3600000')
  if sum > 0 then
    redis.call('INCRBY', KEYS[logs + sum], cost)
    redis.call('PEXPIRE', KEYS[logs + sum], '3600000')
  end
end
return reply";
