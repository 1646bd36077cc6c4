-- KEYS: the entries. ARGV: the lease that must stand there ('': whatever stands there), then a
-- value and its milliseconds for each. How many were written.
local written = 0
for i, key in ipairs(KEYS) do
    if ARGV[1] == '' or redis.call('GET', key) == ARGV[1] then
        redis.call('SET', key, ARGV[i * 2], 'PX', ARGV[i * 2 + 1])
        written = written + 1
    end
end
return written
