-- Takes one unit out of a log, if it has a slot to itself. memory.py is the same in Python.
--
-- KEYS: the log. ARGV: the time of the unit. Gives 1 if it was there.
local head = redis.call('GETRANGE', KEYS[1], 0, HEAD - 1)
if #head < HEAD then
  return 0
end
local log = {key = KEYS[1]}
log.count, log.slots, log.grain = struct.unpack('>ddd', head)
if log.grain > 1 then
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
  redis.call('SETRANGE', log.key, HEAD + number % log.slots * WORD, struct.pack('>d', time))
end
for number = unit, log.count - 2 do
  put(number, at(log, number + 1))
end
put(log.count - 1, 0)
redis.call('SETRANGE', log.key, 0, struct.pack('>ddd', log.count - 1, log.slots, log.grain))
return 1
