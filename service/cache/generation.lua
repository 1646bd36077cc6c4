-- (After begin.lua.) KEYS: gen, writers. ARGV: a name, milliseconds of a generation and of a mark.
-- Gives what stands under gen; where nothing does, a generation begins.
return redis.call('GET', KEYS[1]) or begin(ARGV[1], ARGV[2], ARGV[3])
