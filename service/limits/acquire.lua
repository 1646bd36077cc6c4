-- Decides a batch of requests in order, atomically. memory_store.py implements it in Python.
--
-- A charge is a Charge of types.py: a cost (units) for one log, under one or more policies.
-- KEYS: the log's key for each charge. ARGV: the time in microseconds ('': Redis's own clock); then
-- one string of big-endian doubles for each request: the number of its charges, and for each charge
-- its cost, its number of policies, and the amount and period (microseconds) of each policy.
-- Returns one string of big-endian 8-byte integers for each request: 1 if admitted, else 0; the
-- wait in microseconds; then for each charge the time of the decision (microseconds), and for each
-- of its policies the remaining units and the microseconds until one more unit is available.
local MAX_SLOTS = 4096

local now = tonumber(ARGV[1])
if not now then
  local time = call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- Returns the log of a key, with room for `largest` units. If the stored log is too small, also
-- returns a larger empty log to replace it.
local function open(key, largest)
  local log = {key = key, count = 0, raw = ''}
  log.grain = ceil(largest / MAX_SLOTS)
  log.slots = ceil(largest / log.grain) + 1
  local stored = read(key)
  if not stored then
    return log
  elseif stored.slots * stored.grain >= log.slots * log.grain then
    return stored
  end
  log.count = stored.count
  return stored, log
end

-- Writes a time, packed as a double, into a slot.
local function put(log, slot, stamp)
  call('SETRANGE', log.key, HEAD + slot * WORD, stamp)
end

-- Copies the units of a log into a larger log.
local function move(from, to)
  local stamps = {}
  for unit = from.count - held(from), from.count - 1 do
    stamps[floor(unit / to.grain) % to.slots] = at(from, unit)
  end
  call('DEL', to.key)
  for slot, stamp in pairs(stamps) do
    put(to, slot, pack('>d', stamp))
  end
  to.raw = call('GET', to.key) or ''
end

-- Adds units to a log, all with the same time.
local function add(log, units, now)
  local stamp, first, written = pack('>d', now), log.count, nil
  for unit = first, first + units - 1 do
    local slot = floor(unit / log.grain) % log.slots
    if slot ~= written then
      put(log, slot, stamp)
      written = slot
    end
  end
  log.count, log.now = first + units, now
  log.written = floor(first / log.grain) -- from this block on, `raw` is out of date
  call('SETRANGE', log.key, 0, pack('>ddd', log.count, log.slots, log.grain))
end

-- Decides the request whose keys begin after the first `before` keys. Returns the packed reply, and
-- the number of the request's keys.
local function decide(packed, before)
  local charges, requested, place = {}, unpacked('>d', packed)
  for index = 1, requested do
    local key = KEYS[before + index]
    local charge, number = {policies = {}}, nil
    charge.cost, number, place = unpacked('>dd', packed, place)
    local largest, longest = 0, 0
    for n = 1, number do
      local amount, period
      amount, period, place = unpacked('>dd', packed, place)
      charge.policies[n] = {amount = amount, period = period}
      largest, longest = max(largest, amount), max(longest, period)
    end
    charge.longest = longest
    charge.log, charge.larger = open(key, largest)
    charge.held = held(charge.log)
    charge.now = now
    if charge.held > 0 then
      charge.now = max(now, at(charge.log, charge.log.count - 1))
    end
    charges[index] = charge
  end

  local wait = 0
  for _, charge in ipairs(charges) do
    for _, policy in ipairs(charge.policies) do
      local room = policy.amount - charge.cost -- most units in the window before this request
      if room < 0 then
        wait = max(wait, policy.period)
      elseif charge.held > room then
        local free = at(charge.log, charge.log.count - 1 - room) + policy.period
        wait = max(wait, free - charge.now)
      end
    end
  end
  local admitted = wait <= 0

  for _, charge in ipairs(charges) do
    if admitted and charge.cost > 0 then
      if charge.larger then
        move(charge.log, charge.larger)
        charge.log = charge.larger
      end
      add(charge.log, charge.cost, charge.now)
      call('PEXPIRE', charge.log.key, ceil(charge.longest / 1000))
      charge.held = held(charge.log)
    end
  end

  local reply = {admitted and 1 or 0, max(0, wait)}
  for _, charge in ipairs(charges) do
    reply[#reply + 1] = charge.now
    for _, policy in ipairs(charge.policies) do
      -- Binary search for the first unit in the window: times never decrease.
      local low, high = charge.log.count - charge.held, charge.log.count
      while low < high do
        local middle = floor((low + high) / 2)
        if at(charge.log, middle) + policy.period > charge.now then
          high = middle
        else
          low = middle + 1
        end
      end
      local used = charge.log.count - low
      reply[#reply + 1] = max(0, policy.amount - used)
      reply[#reply + 1] = used > 0 and at(charge.log, low) + policy.period - charge.now or 0
    end
  end
  return pack('>' .. string.rep('i8', #reply), unpack(reply)), requested
end

local replies, decided = {}, 0
for request = 2, #ARGV do
  local reply, claimed = decide(ARGV[request], decided)
  replies[#replies + 1] = reply
  decided = decided + claimed
end
return replies
