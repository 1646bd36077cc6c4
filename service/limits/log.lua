-- A log of admitted units, one string of numbers of eight bytes: how many units it ever took, its
-- slots, the units of a slot; then the slots, a ring, each with the time of its last unit
-- (microseconds). Stands before each of the scripts.
local WORD, HEAD = 8, 24
local call, pack, unpacked = redis.call, struct.pack, struct.unpack -- names of one's own are found sooner
local floor, ceil, max = math.floor, math.ceil, math.max

-- The log of a key, if there is one. It is read whole, 32 KiB at most: each further call of Redis
-- costs more than to copy that.
local function read(key)
  local raw = call('GET', key)
  if raw and #raw >= HEAD then
    local log = {key = key, raw = raw}
    log.count, log.slots, log.grain = unpacked('>ddd', raw)
    return log
  end
end

-- The time of a unit, counted from the first that the log ever took.
local function at(log, unit)
  local block = floor(unit / log.grain)
  if log.written and block >= log.written then
    return log.now
  end
  local place = HEAD + block % log.slots * WORD
  return place + WORD <= #log.raw and (unpacked('>d', log.raw, place + 1)) or 0 -- never used
end

-- How many of the last units are at hand.
local function held(log)
  local blocks = ceil(log.count / log.grain)
  local first = max(0, blocks - log.slots) * log.grain
  return log.count - first
end
