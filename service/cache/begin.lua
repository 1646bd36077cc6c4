-- Begins a generation of all lists, unless a write is under way; gives what stands under gen then.
-- KEYS: gen, writers. `name`: a name that no other caller gives. The name that is stored holds the
-- time as well: a command that is repeated, because its reply was lost, brings no generation back.
local function begin(name, life, mark_life)
    local now = redis.call('TIME')
    redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now[1] * 1000 + math.floor(now[2] / 1000))
    if redis.call('ZCARD', KEYS[2]) > 0 then
        redis.call('SET', KEYS[1], 'W', 'PX', mark_life)
        return 'W'
    end
    local generation = name .. '-' .. now[1] .. '-' .. now[2]
    redis.call('SET', KEYS[1], generation, 'PX', life)
    return generation
end
