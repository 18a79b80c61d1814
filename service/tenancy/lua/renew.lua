-- KEYS: open. ARGV: time or '', lease_ms, id … What is not there, or has lapsed (its mark lasts longer), stays so.
local till = clock(ARGV[1]) + tonumber(ARGV[2])
for at = 3, #ARGV do
  local score = redis.call('ZSCORE', KEYS[1], ARGV[at])
  if score and tonumber(score) < till then
    redis.call('ZADD', KEYS[1], int(till), ARGV[at])
  end
end
return 1
