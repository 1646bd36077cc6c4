-- KEYS: the entries. ARGV: the lease that each key must hold ('': any content), then a value and
-- its lifetime (ms) for each key. Returns the number of values written.
local written = 0
for i, key in ipairs(KEYS) do
    if ARGV[1] == '' or redis.call('GET', key) == ARGV[1] then
        redis.call('SET', key, ARGV[i * 2], 'PX', ARGV[i * 2 + 1])
        written = written + 1
    end
end
return written
