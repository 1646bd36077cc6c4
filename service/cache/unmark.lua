-- (After begin.lua.) KEYS: gen, writers, the items. ARGV: token, a name, milliseconds of a
-- generation and of a mark, whether lists changed ('1').
local own = 'W:' .. ARGV[1]
for i = 3, #KEYS do
    local found = redis.call('GET', KEYS[i])
    -- Another's mark stays: that write is still under way.
    if found and (found == own or found:sub(1, 2) ~= 'W:') then
        redis.call('DEL', KEYS[i])
    end
end
if ARGV[5] == '1' then
    redis.call('ZREM', KEYS[2], ARGV[1])
    -- Also where the own mark is gone: whoever lost it may have lost gen as well, and a reader
    -- begun a generation in which this write is missing.
    begin(ARGV[2], ARGV[3], ARGV[4])
end
return 1
