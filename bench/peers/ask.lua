-- Counts a request of a caller, and reads what it asks for: the one call of a tuned peer.
--
-- The limit is a sliding window of two counts: what of the window before still counts is taken in
-- proportion. KEYS: the caller; what is to be read. ARGV: requests, and seconds, of the limit.
-- Gives what is left (-1: refused), the seconds until the window ends, and the values.
local amount, period = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local window = math.floor(now / period)
local passed = now / period - window

local here, before = KEYS[1] .. ':' .. window, KEYS[1] .. ':' .. (window - 1)
local counts = redis.call('MGET', here, before)
local used = tonumber(counts[1] or 0) + tonumber(counts[2] or 0) * (1 - passed)

local answer = {-1, math.ceil(period * (1 - passed))}
if used + 1 <= amount then
  if redis.call('INCR', here) == 1 then redis.call('EXPIRE', here, 2 * period) end
  answer[1] = math.floor(amount - used - 1)
  for index = 2, #KEYS do answer[index + 1] = redis.call('GET', KEYS[index]) end
end
return answer
