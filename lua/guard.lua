-- Runs a script so that its errors are those of plain.lua.
--
-- Uses     plain_error (plain.lua)
-- Defines  guarded(run): what `run` returns, or the error that it failed with
local function guarded(run)
  local done, reply = pcall(run)
  if done then return reply end
  return { err = plain_error(reply) }
end
