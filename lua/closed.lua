-- Remembers the end of a reservation: see close.lua.
--
-- Uses     now (clock.lua), head (record.lua), what close.lua defines; id, slot_scopes, refunds, refunded (refund.lua)
-- Defines  nothing; it returns

for k = #KEYS - slot_scopes, #KEYS - 1 do
  redis.call('ZREM', KEYS[k], id .. struct.pack('<I4', ttl))
end
local closed = struct.pack('<I6B' .. string.rep('{{ AMOUNT }}', refunds), now, refunds, unpack(refunded)) .. ARGV[3]
redis.call('SET', reservation_key, head(1, from, ttl) .. closed, 'KEEPTTL')
return '\1' .. closed
