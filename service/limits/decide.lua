-- The whole decision of requests, one after the other, in one step. memory.py is the same in Python.
--
-- KEYS: a log for each claim. ARGV: the time in microseconds ('' for Redis's own clock); then, for
-- each request, doubles in one string: the number of its claims, and for each its cost, its number of
-- policies, and amount and period (microseconds) of each.
-- Gives, for each request, in the same way: 1 or 0 (admitted), the wait in microseconds, then for each
-- claim the time of the decision, and for each of its policies what is left and how long until one
-- more is.
local MOST_SLOTS = 4096

local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local function open(key, largest)
  local log = {key = key, count = 0}
  log.grain = math.ceil(largest / MOST_SLOTS)
  log.slots = math.ceil(largest / log.grain) + 1
  local head = redis.call('GETRANGE', key, 0, HEAD - 1)
  if #head == HEAD then
    local count, slots, grain = struct.unpack('>ddd', head)
    if slots * grain >= log.slots * log.grain then
      log.count, log.slots, log.grain = count, slots, grain
    else
      log.old = {key = key, count = count, slots = slots, grain = grain}
      log.count = count
    end
  end
  return log
end

-- Decides a request, of which so many keys stand before its own; gives also how many it has.
local function decide(told, before)
  local claims, requested, place = {}, struct.unpack('>d', told)
  for index = 1, requested do
    local key = KEYS[before + index]
    local claim, number = {policies = {}}, nil
    claim.cost, number, place = struct.unpack('>dd', told, place)
    local largest, longest = 0, 0
    for n = 1, number do
      local amount, period
      amount, period, place = struct.unpack('>dd', told, place)
      claim.policies[n] = {amount = amount, period = period}
      largest, longest = math.max(largest, amount), math.max(longest, period)
    end
    claim.longest = longest
    claim.log = open(key, largest)
    claim.ring = claim.log.old or claim.log
    claim.held = held(claim.log)
    claim.now = now
    if claim.held > 0 then
      claim.now = math.max(now, at(claim.ring, claim.ring.count - 1))
    end
    claims[index] = claim
  end

  local wait = 0
  for _, claim in ipairs(claims) do
    for _, policy in ipairs(claim.policies) do
      local room = policy.amount - claim.cost -- units that may stand in the window already
      if room < 0 then
        wait = math.max(wait, policy.period)
      elseif claim.held > room then
        local free = at(claim.ring, claim.ring.count - 1 - room) + policy.period
        wait = math.max(wait, free - claim.now)
      end
    end
  end
  local admitted = wait <= 0

  for _, claim in ipairs(claims) do
    if admitted and claim.cost > 0 then
      local log = claim.log
      if log.old then
        local stamps = {}
        for unit = log.count - claim.held, log.count - 1 do
          stamps[math.floor(unit / log.grain) % log.slots] = at(log.old, unit)
        end
        redis.call('DEL', log.key)
        for slot, stamp in pairs(stamps) do
          redis.call('SETRANGE', log.key, HEAD + slot * WORD, struct.pack('>d', stamp))
        end
        log.old = nil
      end
      local stamp, written = struct.pack('>d', claim.now), nil
      for unit = log.count, log.count + claim.cost - 1 do
        local slot = math.floor(unit / log.grain) % log.slots
        if slot ~= written then
          redis.call('SETRANGE', log.key, HEAD + slot * WORD, stamp)
          written = slot
        end
      end
      log.count = log.count + claim.cost
      redis.call('SETRANGE', log.key, 0, struct.pack('>ddd', log.count, log.slots, log.grain))
      redis.call('PEXPIRE', log.key, math.ceil(claim.longest / 1000))
      claim.ring, claim.held = log, held(log)
    end
  end

  local answer = {admitted and 1 or 0, math.max(0, wait)}
  for _, claim in ipairs(claims) do
    answer[#answer + 1] = claim.now
    for _, policy in ipairs(claim.policies) do
      -- The first unit within the window, by halving: times never run back.
      local low, high = claim.ring.count - claim.held, claim.ring.count
      while low < high do
        local middle = math.floor((low + high) / 2)
        if at(claim.ring, middle) + policy.period > claim.now then
          high = middle
        else
          low = middle + 1
        end
      end
      local used = claim.ring.count - low
      answer[#answer + 1] = math.max(0, policy.amount - used)
      answer[#answer + 1] = used > 0 and at(claim.ring, low) + policy.period - claim.now or 0
    end
  end
  return struct.pack('>' .. string.rep('d', #answer), unpack(answer)), requested
end

local answers, decided = {}, 0
for request = 2, #ARGV do
  local answer, claimed = decide(ARGV[request], decided)
  answers[#answers + 1] = answer
  decided = decided + claimed
end
return answers
