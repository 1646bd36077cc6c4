-- Counts a request of a client, and reads the requested keys: the only Redis call of a tuned peer.
--
-- The limit is a sliding window of two counts: the count of the previous window is weighted by the
-- part of it that the sliding window still covers. KEYS: the client; the keys to read. ARGV: the
-- requests and the seconds of the limit. Returns the remaining requests (-1: rejected), the seconds
-- until the window ends, and the values of the keys.
local amount, period = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local window = math.floor(now / period)
local passed = now / period - window

local here, before = KEYS[1] .. ':' .. window, KEYS[1] .. ':' .. (window - 1)
local counts = redis.call('MGET', here, before)
local used = tonumber(counts[1] or 0) + tonumber(counts[2] or 0) * (1 - passed)

local result = {-1, math.ceil(period * (1 - passed))}
if used + 1 <= amount then
  if redis.call('INCR', here) == 1 then redis.call('EXPIRE', here, 2 * period) end
  result[1] = math.floor(amount - used - 1)
  for index = 2, #KEYS do result[index + 1] = redis.call('GET', KEYS[index]) end
end
return result
