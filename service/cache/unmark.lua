-- (After begin.lua.) KEYS: gen and writers of each kind whose lists changed, then the items. ARGV:
-- token, a name, the lifetimes (ms) of a generation and of a mark, the number of those kinds.
local own, lists = 'W:' .. ARGV[1], 2 * tonumber(ARGV[5])
for i = lists + 1, #KEYS do
    local value = redis.call('GET', KEYS[i])
    -- The mark of another write stays: that write is still under way.
    if value and (value == own or value:sub(1, 2) ~= 'W:') then
        redis.call('DEL', KEYS[i])
    end
end
for i = 1, lists, 2 do
    local gen, writers = KEYS[i], KEYS[i + 1]
    redis.call('ZREM', writers, ARGV[1])
    -- Also if the own mark is gone: Redis may have lost gen as well, and a reader may then have
    -- begun a generation without this write.
    begin(gen, writers, ARGV[2], ARGV[3], ARGV[4])
end
return 1
