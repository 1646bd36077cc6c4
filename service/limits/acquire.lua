-- Decides a batch of requests in order, atomically. memory_store.py implements it in Python.
--
-- A claim is a Charge of types.py: a cost (units) for one log, under one or more policies.
-- KEYS: the log's key for each claim. ARGV: the time in microseconds ('': Redis's own clock); then
-- one string of big-endian doubles for each request: the number of its claims, and for each claim
-- its cost, its number of policies, and the amount and period (microseconds) of each policy.
-- Returns one string of big-endian 8-byte integers for each request: 1 if admitted, else 0; the
-- wait in microseconds; then for each claim the time of the decision (microseconds), and for each
-- of its policies the remaining units and the microseconds until one more unit is available.
local MOST_SLOTS = 4096

local now = tonumber(ARGV[1])
if not now then
  local time = call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- Returns the log of a key, with room for `largest` units. If the stored log is too small, also
-- returns a larger empty log to replace it.
local function open(key, largest)
  local log = {key = key, count = 0, raw = ''}
  log.grain = ceil(largest / MOST_SLOTS)
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
  local claims, requested, place = {}, unpacked('>d', packed)
  for index = 1, requested do
    local key = KEYS[before + index]
    local claim, number = {policies = {}}, nil
    claim.cost, number, place = unpacked('>dd', packed, place)
    local largest, longest = 0, 0
    for n = 1, number do
      local amount, period
      amount, period, place = unpacked('>dd', packed, place)
      claim.policies[n] = {amount = amount, period = period}
      largest, longest = max(largest, amount), max(longest, period)
    end
    claim.longest = longest
    claim.log, claim.larger = open(key, largest)
    claim.held = held(claim.log)
    claim.now = now
    if claim.held > 0 then
      claim.now = max(now, at(claim.log, claim.log.count - 1))
    end
    claims[index] = claim
  end

  local wait = 0
  for _, claim in ipairs(claims) do
    for _, policy in ipairs(claim.policies) do
      local room = policy.amount - claim.cost -- most units in the window before this request
      if room < 0 then
        wait = max(wait, policy.period)
      elseif claim.held > room then
        local free = at(claim.log, claim.log.count - 1 - room) + policy.period
        wait = max(wait, free - claim.now)
      end
    end
  end
  local admitted = wait <= 0

  for _, claim in ipairs(claims) do
    if admitted and claim.cost > 0 then
      if claim.larger then
        move(claim.log, claim.larger)
        claim.log = claim.larger
      end
      add(claim.log, claim.cost, claim.now)
      call('PEXPIRE', claim.log.key, ceil(claim.longest / 1000))
      claim.held = held(claim.log)
    end
  end

  local reply = {admitted and 1 or 0, max(0, wait)}
  for _, claim in ipairs(claims) do
    reply[#reply + 1] = claim.now
    for _, policy in ipairs(claim.policies) do
      -- Binary search for the first unit in the window: times never decrease.
      local low, high = claim.log.count - claim.held, claim.log.count
      while low < high do
        local middle = floor((low + high) / 2)
        if at(claim.log, middle) + policy.period > claim.now then
          high = middle
        else
          low = middle + 1
        end
      end
      local used = claim.log.count - low
      reply[#reply + 1] = max(0, policy.amount - used)
      reply[#reply + 1] = used > 0 and at(claim.log, low) + policy.period - claim.now or 0
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
