-- The whole decision of requests, one after the other, in one step. memory.py is the same in Python.
--
-- KEYS: a log for each claim. ARGV: the time in microseconds ('' for Redis's own clock); then, for
-- each request, doubles in one string: the number of its claims, and for each its cost, its number of
-- policies, and amount and period (microseconds) of each.
-- Gives, for each request, whole numbers of eight bytes in one string: 1 or 0 (admitted), the wait in
-- microseconds, then for each claim the time of the decision, and for each of its policies what is
-- left and how long until one more is.
local MOST_SLOTS = 4096

local now = tonumber(ARGV[1])
if not now then
  local time = call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- The log of a key, and one with more room to take its place, if it has not enough.
local function open(key, largest)
  local log = {key = key, count = 0, raw = ''}
  log.grain = ceil(largest / MOST_SLOTS)
  log.slots = ceil(largest / log.grain) + 1
  local found = read(key)
  if not found then
    return log
  elseif found.slots * found.grain >= log.slots * log.grain then
    return found
  end
  log.count = found.count
  return found, log
end

local function put(log, slot, stamp)
  call('SETRANGE', log.key, HEAD + slot * WORD, stamp)
end

-- Writes the units of a log into one with more room.
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

-- Takes so many units into a log, all of one time.
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
  log.written = floor(first / log.grain) -- from this block on `raw` is no longer true
  call('SETRANGE', log.key, 0, pack('>ddd', log.count, log.slots, log.grain))
end

-- Decides a request, of which so many keys stand before its own; gives also how many it has.
local function decide(told, before)
  local claims, requested, place = {}, unpacked('>d', told)
  for index = 1, requested do
    local key = KEYS[before + index]
    local claim, number = {policies = {}}, nil
    claim.cost, number, place = unpacked('>dd', told, place)
    local largest, longest = 0, 0
    for n = 1, number do
      local amount, period
      amount, period, place = unpacked('>dd', told, place)
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
      local room = policy.amount - claim.cost -- units that may stand in the window already
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

  local answer = {admitted and 1 or 0, max(0, wait)}
  for _, claim in ipairs(claims) do
    answer[#answer + 1] = claim.now
    for _, policy in ipairs(claim.policies) do
      -- The first unit within the window, by halving: times never run back.
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
      answer[#answer + 1] = max(0, policy.amount - used)
      answer[#answer + 1] = used > 0 and at(claim.log, low) + policy.period - claim.now or 0
    end
  end
  return pack('>' .. string.rep('i8', #answer), unpack(answer)), requested
end

local answers, decided = {}, 0
for request = 2, #ARGV do
  local answer, claimed = decide(ARGV[request], decided)
  answers[#answers + 1] = answer
  decided = decided + claimed
end
return answers
