-- KEYS: the items. ARGV: lease, milliseconds. Which of them were free, and are leased now.
local leased = {}
for i, key in ipairs(KEYS) do
    leased[i] = redis.call('SET', key, ARGV[1], 'NX', 'PX', ARGV[2]) and 1 or 0
end
return leased
