-- KEYS: any keys of the cache. Deletes the values among them, and the generations: processes keep
-- pages by their generation. Marks and leases stay: writers and readers rely on them. Returns the
-- number of values.
local swept = 0
for _, key in ipairs(KEYS) do
    if redis.call('TYPE', key).ok == 'string' then
        local kind = redis.call('GETRANGE', key, 0, 1)
        if kind == 'V\n' then
            swept = swept + redis.call('UNLINK', key)
        elseif kind == 'G:' then
            redis.call('UNLINK', key)
        end
    end
end
return swept
