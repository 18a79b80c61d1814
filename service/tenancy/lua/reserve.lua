-- KEYS: open, held. ARGV: base, time or '', lease_ms, id, tokens, nanousd, then for each scope its name and its five
-- limits in their order, '' for none. Returns {1 or 0, now, scope, limit, wait_ms, six counts of each scope …}, or
-- {-1} where the id is held already.
local base, now, lease, id = ARGV[1], clock(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local tokens, nanousd = tonumber(ARGV[5]), tonumber(ARGV[6])

for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', int(now), 'LIMIT', 0, 1000)) do
  local text = redis.call('HGET', KEYS[2], name)
  local held = text and unpacked(text)
  if not held or held.lapsed then
    redis.call('HDEL', KEYS[2], name)
    redis.call('ZREM', KEYS[1], name)
  else
    replace(base, held, 0, 0)
    redis.call('HSET', KEYS[2], name, int(held.at) .. '|0|0|1|' .. held.scopes)
    redis.call('ZADD', KEYS[1], int(now + DAY), name)
  end
end
if redis.call('HEXISTS', KEYS[2], id) == 1 then
  return {-1}
end

local today = math.floor(now / DAY)
local scopes, names = {}, {}
for at = 7, #ARGV, 6 do
  local scope = {key = base .. ':c:' .. ARGV[at], q = 0, t = 0, newest = -1, stale = {}, steps = {}, dt = 0, dm = 0, run = 0}
  local raw = redis.call('HGETALL', scope.key)
  for i = 1, #raw, 2 do
    local field, value = raw[i], tonumber(raw[i + 1])
    local kind = string.sub(field, 1, 1)
    if kind == 'q' or kind == 't' then
      local step = tonumber(string.sub(field, 2))
      if ends(step) <= now then
        scope.stale[#scope.stale + 1] = field
      else
        scope[kind] = scope[kind] + value
        scope.newest = math.max(scope.newest, step)
        scope.steps[#scope.steps + 1] = {step, kind, value}
      end
    else
      scope[field] = value
    end
  end
  if scope.day ~= today then
    scope.dt, scope.dm = 0, 0
  end
  names[#names + 1] = ARGV[at]
  scopes[#scopes + 1] = scope
end

local function wait(scope, kind, excess)
  table.sort(scope.steps, function(a, b) return a[1] < b[1] end)
  for _, step in ipairs(scope.steps) do
    if step[2] == kind then
      excess = excess - step[3]
      if excess <= 0 then
        return ends(step[1]) - now
      end
    end
  end
  return STEP
end

local function refusal(scope, first)
  local used = {scope.run, scope.q, scope.t, scope.dt, scope.dm}
  local asked = {1, 1, tokens, tokens, nanousd}
  for place = 1, 5 do
    local bound = tonumber(ARGV[first + place])
    if bound and used[place] + asked[place] > bound then
      if asked[place] > bound then
        return place, -1
      elseif place == 1 then
        return place, STEP
      elseif place > 3 then
        return place, DAY - now % DAY
      end
      return place, wait(scope, place == 2 and 'q' or 't', used[place] + asked[place] - bound)
    end
  end
end

local out = {1, now, 0, 0, 0}
for number, scope in ipairs(scopes) do
  local place, wait_ms = refusal(scope, 1 + number * 6)
  if place then
    out = {0, now, number - 1, place - 1, wait_ms}
    break
  end
end

if out[1] == 1 then
  local step = int(math.floor(now / STEP))
  for _, scope in ipairs(scopes) do
    scope.q, scope.t, scope.run = scope.q + 1, scope.t + tokens, scope.run + 1
    scope.dt, scope.dm, scope.newest = scope.dt + tokens, scope.dm + nanousd, math.floor(now / STEP)
    redis.call('HINCRBY', scope.key, 'q' .. step, '1')
    redis.call('HINCRBY', scope.key, 't' .. step, int(tokens))
    redis.call('HSET', scope.key, 'run', int(scope.run), 'day', int(today), 'dt', int(scope.dt), 'dm', int(scope.dm))
    if #scope.stale > 0 then
      redis.call('HDEL', scope.key, unpack(scope.stale))
    end
    redis.call('PEXPIRE', scope.key, KEPT)
  end
  redis.call('HSET', KEYS[2], id, int(now) .. '|' .. int(tokens) .. '|' .. int(nanousd) .. '|0|' .. table.concat(names, ','))
  redis.call('ZADD', KEYS[1], int(now + lease), id)
  redis.call('PEXPIRE', KEYS[1], KEPT)
  redis.call('PEXPIRE', KEYS[2], KEPT)
end

for _, scope in ipairs(scopes) do
  local reset = scope.newest < 0 and 0 or math.max(0, ends(scope.newest) - now)
  for _, count in ipairs({scope.q, scope.t, reset, scope.dt, scope.dm, scope.run}) do
    out[#out + 1] = count
  end
end
return out
