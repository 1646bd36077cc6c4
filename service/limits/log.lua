-- A log of admitted units, one string of numbers of eight bytes: how many units it ever took, its
-- slots, the units of a slot; then the slots, a ring, each with the time of its last unit
-- (microseconds). Stands before each of the scripts.
local WORD, HEAD = 8, 24

local function word(log, place)
  local bytes = redis.call('GETRANGE', log.key, place, place + WORD - 1)
  return #bytes == WORD and struct.unpack('>d', bytes) or 0 -- 0: a slot that was never used
end

-- The time of a unit, counted from the first that the log ever took.
local function at(log, unit)
  return word(log, HEAD + math.floor(unit / log.grain) % log.slots * WORD)
end

-- How many of the last units are at hand.
local function held(log)
  local ring = log.old or log
  local blocks = math.ceil(ring.count / ring.grain)
  local first = math.max(0, blocks - ring.slots) * ring.grain
  return ring.count - first
end
