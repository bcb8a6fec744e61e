-- Makes the text of an error. A counter that was changed by hand may hold any bytes, and a client cannot read an error that
-- quotes them. So every error is printable ASCII of bounded length, with a code in front: the code of Redis where it says
-- what is wrong with the server (OOM, READONLY, ...), otherwise TGUNREADABLE.
--
-- Uses     nothing
-- Defines  plain_error(failure): the text of an error that was caught, or of one that a script returned
local function plain_error(failure)
  local text = type(failure) == 'table' and failure.err or failure
  text = string.gsub(string.sub(tostring(text), 1, 200), '[^ -~]', '?')
  -- Before version 7 of Redis the code stands inside the text.
  local coded = string.match(text, '^%u+ .*') or string.match(text, ' %-(%u+ .*)')
  if coded and not string.find(coded, '^ERR ') and not string.find(coded, '^WRONGTYPE ') then return coded end
  return 'TGUNREADABLE ' .. text
end
