-- A log of admitted units, as one string of 8-byte numbers: the count of all units ever added, the
-- number of slots, the units for each slot; then a ring of slots, each with the time of its last unit
-- (microseconds). This file is the first part of each script.
local WORD, HEAD = 8, 24
local call, pack, unpacked = redis.call, struct.pack, struct.unpack -- locals are faster than globals
local floor, ceil, max = math.floor, math.ceil, math.max

-- Returns the log of a key, or nothing. Reads all of it (at most 32 KiB): further calls of Redis cost
-- more than this copy.
local function read(key)
  local raw = call('GET', key)
  if raw and #raw >= HEAD then
    local log = {key = key, raw = raw}
    log.count, log.slots, log.grain = unpacked('>ddd', raw)
    return log
  end
end

-- Returns the time of a unit. Units are numbered from the first that was ever added.
local function at(log, unit)
  local block = floor(unit / log.grain)
  if log.written and block >= log.written then
    return log.now
  end
  local place = HEAD + block % log.slots * WORD
  return place + WORD <= #log.raw and (unpacked('>d', log.raw, place + 1)) or 0 -- never used
end

-- Returns the number of units that the log still holds.
local function held(log)
  local blocks = ceil(log.count / log.grain)
  local first = max(0, blocks - log.slots) * log.grain
  return log.count - first
end
