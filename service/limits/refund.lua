-- Removes one unit from a log whose slots hold one unit each. In Python: Log.remove in
-- memory_store.py.
--
-- KEYS: the key of the log. ARGV: the time of the unit in microseconds. Returns 1 if the unit was
-- removed, else 0.
local log = read(KEYS[1])
if not log or log.grain > 1 then
  return 0
end
local stamp, unit, first = tonumber(ARGV[1]), log.count - 1, log.count - held(log)
while unit >= first and at(log, unit) > stamp do
  unit = unit - 1
end
if unit < first or at(log, unit) ~= stamp then
  return 0
end
local function put(number, time)
  call('SETRANGE', log.key, HEAD + number % log.slots * WORD, pack('>d', time))
end
for number = unit, log.count - 2 do
  put(number, at(log, number + 1))
end
put(log.count - 1, 0)
call('SETRANGE', log.key, 0, pack('>ddd', log.count - 1, log.slots, log.grain))
return 1
