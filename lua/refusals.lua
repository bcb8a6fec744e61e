-- Adds refusals to the log of an account.
--
-- Uses     nothing
-- Defines  nothing; it returns
--
-- KEYS[1]  the log: a list, the newest first
-- ARGV[1]  how many it keeps, ARGV[2] how long it is kept from now on (ms), then the refusals, oldest first
-- reply    how many it has now
-- cost     three commands
redis.call('LPUSH', KEYS[1], unpack(ARGV, 3))
redis.call('LTRIM', KEYS[1], 0, ARGV[1] - 1)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('LLEN', KEYS[1])
