-- KEYS: anything of the cache. Deletes the values among them: marks and leases guard somebody.
local swept = 0
for _, key in ipairs(KEYS) do
    if redis.call('TYPE', key).ok == 'string' and redis.call('GETRANGE', key, 0, 1) == 'V\n' then
        swept = swept + redis.call('UNLINK', key)
    end
end
return swept
