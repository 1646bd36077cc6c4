-- (After begin.lua.) KEYS: gen and writers of a kind. ARGV: a name, the lifetimes (ms) of a
-- generation and of a mark. Returns the content of gen; if gen is empty, begins a generation.
return redis.call('GET', KEYS[1]) or begin(KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3])
