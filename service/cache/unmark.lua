-- KEYS: gen, writers, the items. ARGV: token, a new generation, its milliseconds, whether lists
-- changed ('1'), milliseconds of a mark.
local own = 'W:' .. ARGV[1]
for i = 3, #KEYS do
    local found = redis.call('GET', KEYS[i])
    -- Another's mark stays: that write is still under way.
    if found and (found == own or found:sub(1, 2) ~= 'W:') then
        redis.call('DEL', KEYS[i])
    end
end
if ARGV[4] == '1' then
    local now = redis.call('TIME')
    local mine = redis.call('ZREM', KEYS[2], ARGV[1]) == 1
    redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now[1] * 1000 + math.floor(now[2] / 1000))
    if redis.call('ZCARD', KEYS[2]) > 0 then
        redis.call('SET', KEYS[1], 'W', 'PX', ARGV[5])
    elseif mine then -- said again, it is none of this write's: another may have come since
        redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
    end
end
return 1
