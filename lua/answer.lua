-- The reply of a decision: see apply.lua.
--
-- Cutting a constant makes one string, repeating and joining makes two.
local format = rows <= 4 and sub('<BI6I7I6I6I7I6I6I7I6I6I7I6I6', 1, 4 + rows * 6) or '<BI6' .. rep('I7I6I6', rows)
return pack(format, unpack(reply, 1, 2 + rows * 3))
