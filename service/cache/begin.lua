-- Begins a generation of a kind's lists, unless a write is under way. Returns the content of gen.
-- gen, writers: the kind's keys. `name`: a name that no other caller uses. The stored name includes
-- the time: a command that is repeated because its reply was lost makes another generation, not the
-- old one.
local function begin(gen, writers, name, life, mark_life)
    local now = redis.call('TIME')
    redis.call('ZREMRANGEBYSCORE', writers, '-inf', now[1] * 1000 + math.floor(now[2] / 1000))
    if redis.call('ZCARD', writers) > 0 then
        redis.call('SET', gen, 'W', 'PX', mark_life)
        return 'W'
    end
    local generation = name .. '-' .. now[1] .. '-' .. now[2]
    redis.call('SET', gen, generation, 'PX', life)
    return generation
end
