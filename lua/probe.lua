-- Whether Redis can charge: writes one key, which expires by itself, and returns the time.
--
-- Uses     nothing
-- Defines  nothing; it returns
--
-- KEYS[1]  a key of the node's own
-- ARGV[1]  how long it lives, in milliseconds
-- reply    that of TIME
-- cost     one SET and one TIME
redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
return redis.call('TIME')
