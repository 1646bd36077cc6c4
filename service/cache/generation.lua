-- (After begin.lua.) KEYS: gen and writers of a kind. ARGV: a name, milliseconds of a generation and
-- of a mark. Gives what stands under gen; where nothing does, a generation begins.
return redis.call('GET', KEYS[1]) or begin(KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3])
