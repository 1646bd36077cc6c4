-- KEYS: the items. ARGV: lease, its lifetime (ms). Returns 1 for each key that was empty and is now
-- leased, else 0.
local leased = {}
for i, key in ipairs(KEYS) do
    leased[i] = redis.call('SET', key, ARGV[1], 'NX', 'PX', ARGV[2]) and 1 or 0
end
return leased
