-- Changes one account if it is still as the caller read it, and notifies every node, in one step.
--
-- Uses     nothing
-- Defines  nothing; it returns
--
-- KEYS[1]  the account's record: 16 digits of its version, then the rest; without a TTL
-- KEYS[2]  an event in the same slot, or absent: exists while the event is remembered as done
-- ARGV[1]  the version the caller read, 16 digits; empty if there was no record
-- ARGV[2]  the new record; empty if there is to be none
-- ARGV[3]  the channel that all nodes listen on
-- ARGV[4]  the message to publish there
-- ARGV[5]  how long the event is remembered, in ms
-- reply    1 done, 0 the record has another version (nothing was done), 2 the event was done before (nothing was done)
-- cost     one short read and one write of the record, whatever its size

if KEYS[2] and redis.call('EXISTS', KEYS[2]) == 1 then return 2 end
if redis.call('GETRANGE', KEYS[1], 0, {{ ACCOUNT_VERSION_DIGITS - 1 }}) ~= ARGV[1] then return 0 end
if ARGV[2] ~= '' then
  redis.call('SET', KEYS[1], ARGV[2])
elseif ARGV[1] ~= '' then
  redis.call('DEL', KEYS[1])
end
if KEYS[2] then redis.call('SET', KEYS[2], '', 'PX', ARGV[5]) end
if ARGV[2] ~= '' or ARGV[1] ~= '' then redis.call('PUBLISH', ARGV[3], ARGV[4]) end
return 1
