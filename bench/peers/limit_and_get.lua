-- Counts a request of a client, and reads the requested keys: the only Redis call of a tuned peer.
--
-- The limit is a sliding window of two counts: the count of the previous window is weighted by the
-- part of it that the sliding window still covers. KEYS: the client; the keys to read. ARGV: the
-- requests and the seconds of the limit; the cost of the request, by default 1. Returns the
-- remaining requests (-1: rejected), the seconds until the window ends, and the values of the keys.
local amount, period, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3] or 1)
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local window = math.floor(now / period)
local passed = now / period - window

local here, before = KEYS[1] .. ':' .. window, KEYS[1] .. ':' .. (window - 1)
local counts = redis.call('MGET', here, before)
local used = tonumber(counts[1] or 0) + tonumber(counts[2] or 0) * (1 - passed)

local result = {-1, math.ceil(period * (1 - passed))}
if used + cost <= amount then
  if redis.call('INCRBY', here, cost) == cost then redis.call('EXPIRE', here, 2 * period) end
  result[1] = math.floor(amount - used - cost)
  local values = #KEYS > 1 and redis.call('MGET', unpack(KEYS, 2)) or {}
  for index = 1, #values do result[index + 2] = values[index] end
end
return result
