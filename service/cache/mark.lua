-- KEYS: gen, writers, the items. ARGV: token, milliseconds, whether lists change ('1').
local token, life = ARGV[1], tonumber(ARGV[2])
if ARGV[3] == '1' then
    local now = redis.call('TIME')
    redis.call('ZADD', KEYS[2], now[1] * 1000 + math.floor(now[2] / 1000) + life, token)
    redis.call('PEXPIRE', KEYS[2], life)
    redis.call('SET', KEYS[1], 'W', 'PX', life)
end
for i = 3, #KEYS do
    redis.call('SET', KEYS[i], 'W:' .. token, 'PX', life)
end
return 1
