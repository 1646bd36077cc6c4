-- (After begin.lua.) KEYS: gen and writers of each kind whose lists changed, then the items. ARGV:
-- token, a name, milliseconds of a generation and of a mark, the number of those kinds.
local own, lists = 'W:' .. ARGV[1], 2 * tonumber(ARGV[5])
for i = lists + 1, #KEYS do
    local found = redis.call('GET', KEYS[i])
    -- Another's mark stays: that write is still under way.
    if found and (found == own or found:sub(1, 2) ~= 'W:') then
        redis.call('DEL', KEYS[i])
    end
end
for i = 1, lists, 2 do
    local gen, writers = KEYS[i], KEYS[i + 1]
    redis.call('ZREM', writers, ARGV[1])
    -- Also where the own mark is gone: whoever lost it may have lost gen as well, and a reader
    -- begun a generation in which this write is missing.
    begin(gen, writers, ARGV[2], ARGV[3], ARGV[4])
end
return 1
