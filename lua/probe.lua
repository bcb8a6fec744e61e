-- Whether a charge is possible: writes one key that ends by itself, and tells the time.
--
-- KEYS[1]  a key of the node's own
-- ARGV[1]  how long it lives, in milliseconds
-- Reply: that of TIME. Cost: one SET and one TIME.
redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
return redis.call('TIME')
