-- KEYS: gen and writers of each kind whose lists change, then the items. ARGV: token, lifetime
-- of a mark (ms), the number of those kinds.
local token, life, lists = ARGV[1], tonumber(ARGV[2]), 2 * tonumber(ARGV[3])
local now = redis.call('TIME')
for i = 1, lists, 2 do
    local gen, writers = KEYS[i], KEYS[i + 1]
    redis.call('ZADD', writers, now[1] * 1000 + math.floor(now[2] / 1000) + life, token)
    redis.call('PEXPIRE', writers, life)
    redis.call('SET', gen, 'W', 'PX', life)
end
for i = lists + 1, #KEYS do
    redis.call('SET', KEYS[i], 'W:' .. token, 'PX', life)
end
return 1
