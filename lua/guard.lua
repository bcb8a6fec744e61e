-- Runs a script whose errors are those of plain.lua.
--
-- guarded(run)  what `run` returns, or the error it failed with
local function guarded(run)
  local done, reply = pcall(run)
  if done then return reply end
  return { err = plain_error(reply) }
end
