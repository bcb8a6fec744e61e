-- The end of the script that only decides: makes the reply, see apply.lua.
--
-- Uses     sub, rep, pack, rows, reply (apply.lua)
-- Defines  nothing; it returns
--
-- Cutting a constant makes one Lua string; repeating and joining makes two.
local format = rows <= 4 and sub('<{{ REPLY }}{{ STATUS }}{{ STATUS }}{{ STATUS }}{{ STATUS }}', 1, {{ 1 + REPLY | length }} + rows * {{ STATUS | length }})
  or '<{{ REPLY }}' .. rep('{{ STATUS }}', rows)
return pack(format, unpack(reply, 1, 2 + rows * 3))
