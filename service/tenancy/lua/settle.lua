-- KEYS: open, held. ARGV: base, id, tokens, nanousd. Returns 1, or 0 where there is nothing to settle any more.
local text = redis.call('HGET', KEYS[2], ARGV[2])
if not text then
  return 0
end
replace(ARGV[1], unpacked(text), tonumber(ARGV[3]), tonumber(ARGV[4]))
redis.call('HDEL', KEYS[2], ARGV[2])
redis.call('ZREM', KEYS[1], ARGV[2])
return 1
