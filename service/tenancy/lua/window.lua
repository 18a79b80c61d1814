-- Shared by the scripts below (put before each): numbers, times, and the counts of one scope.
-- Keys: <base>:open  sorted set, id -> when its lease ends
--       <base>:held  hash, id -> "at|tokens|nanousd|lapsed|scope,scope"
--       <base>:c:<scope>  hash: run; day, dt, dm; q<second> requests and t<second> tokens of the last minute
-- All keys of a tenant have its name as their hash tag, so that a cluster keeps them in one place.
local MINUTE, DAY, STEP, KEPT = 60000, 86400000, 1000, 172800000

local function int(number)
  return string.format('%.0f', number)
end

local function clock(given)
  if given ~= '' then
    return tonumber(given)
  end
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function ends(step)
  return (step + 1) * STEP + MINUTE
end

local function unpacked(text)
  local at, tokens, nanousd, lapsed, scopes = string.match(text, '^(%d+)|(%d+)|(%d+)|(%d)|(.*)$')
  return {at = tonumber(at), tokens = tonumber(tokens), nanousd = tonumber(nanousd), lapsed = lapsed == '1', scopes = scopes}
end

-- What the reservation held becomes what was used, at the time of the reservation.
local function replace(base, held, tokens, nanousd)
  local more_tokens, more_nanousd = tokens - held.tokens, nanousd - held.nanousd
  local step = 't' .. int(math.floor(held.at / STEP))
  for scope in string.gmatch(held.scopes, '[^,]+') do
    local key = base .. ':c:' .. scope
    local found = redis.call('HMGET', key, step, 'day', 'run')
    if found[1] and more_tokens ~= 0 then
      redis.call('HINCRBY', key, step, int(more_tokens))
    end
    if found[2] and tonumber(found[2]) == math.floor(held.at / DAY) then
      redis.call('HINCRBY', key, 'dt', int(more_tokens))
      redis.call('HINCRBY', key, 'dm', int(more_nanousd))
    end
    if found[3] and not held.lapsed then
      redis.call('HINCRBY', key, 'run', '-1')
    end
  end
end
