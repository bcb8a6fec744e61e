-- The reply of a decision: see apply.lua.
--
-- Cutting a constant makes one string, repeating and joining makes two.
local format = rows <= 4 and sub('<{{ REPLY }}{{ STATUS }}{{ STATUS }}{{ STATUS }}{{ STATUS }}', 1, {{ 1 + REPLY | length }} + rows * {{ STATUS | length }})
  or '<{{ REPLY }}' .. rep('{{ STATUS }}', rows)
return pack(format, unpack(reply, 1, 2 + rows * 3))
