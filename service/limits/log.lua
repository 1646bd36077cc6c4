-- Functions for a log of admitted units. redis_store.py puts this file before each script.
--
-- A log is one string of big-endian doubles: `count` (units ever added), `slots` (number of slots)
-- and `grain` (units that share a slot); then a ring of slots, each with the time of its
-- last unit (microseconds). `grain` units in a row are a block, in slot (block % slots).
local WORD, HEAD = 8, 24
local call, pack, unpacked = redis.call, struct.pack, struct.unpack -- faster than globals
local floor, ceil, max = math.floor, math.ceil, math.max

-- Returns the log of a key, or nothing. Reads the whole string (at most 32 KiB): more calls of
-- Redis would cost more than this copy.
local function read(key)
  local raw = call('GET', key)
  if raw and #raw >= HEAD then
    local log = {key = key, raw = raw}
    log.count, log.slots, log.grain = unpacked('>ddd', raw)
    return log
  end
end

-- Returns the time of a unit (microseconds). Unit 0 is the first ever added. Blocks from
-- `log.written` on are not yet in `log.raw`: this script has added them at `log.now`.
local function at(log, unit)
  local block = floor(unit / log.grain)
  if log.written and block >= log.written then
    return log.now
  end
  local place = HEAD + block % log.slots * WORD
  return place + WORD <= #log.raw and (unpacked('>d', log.raw, place + 1)) or 0 -- 0: never used
end

-- Returns the number of units that the log still holds.
local function held(log)
  local blocks = ceil(log.count / log.grain)
  local first = max(0, blocks - log.slots) * log.grain
  return log.count - first
end
