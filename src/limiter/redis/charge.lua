-- Charges all windows of a key that have a limit, or none of them. Also reconciles the use that an instance reports.
--
-- KEYS  one hash for each window: number (of the window in its span), used (by all instances), and one field for each
--       instance with its own use, so that use that Redis lost can be restored.
-- ARGV  need, want    charge at least need, or nothing; charge up to want if enough remains
--       part          above the need, at most the remainder divided by this is charged
--       instance      the name of the instance
--       and for each window: span in seconds; limit; the number of the window that the instance knows; its own use
--       in that window; the part of that use that it returns.
local need, want, part, instance = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local clock = redis.call('TIME')
local now = tonumber(clock[1])

local windows, room = {}, math.huge
for i, key in ipairs(KEYS) do
  local at = 5 * i - 1
  local span, limit = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local known, own, returned = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
  local window = { key = key, span = span, number = math.floor(now / span), used = 0, own = 0 }

  -- A value of another type is no window of Keystile. The first charge deletes it.
  local held = redis.pcall('HMGET', key, 'number', 'used', instance)
  local number = tonumber(held[1])
  if number and number >= window.number then
    window.used, window.own = tonumber(held[2]) or 0, tonumber(held[3]) or 0
    -- The clock was set back a little: the window that has begun continues. Set back a lot: the use moves to the
    -- earlier window, so that nothing is allowed twice and no key is denied for as long.
    window.has_expiry = number == window.number or number == window.number + 1
    if window.has_expiry then window.number = number else window.changed = true end
  else
    window.is_new = true
  end

  if known == window.number then
    local missing = math.max(0, own - window.own)
    returned = math.min(returned, window.own + missing)
    window.used = window.used + missing - returned
    window.own = window.own + missing - returned
    window.changed = window.changed or missing > 0 or returned > 0
  end
  room = math.min(room, limit - window.used)
  windows[i] = window
end

local grant = 0
if need > 0 and room >= need then
  grant = need + math.max(0, math.min(want - need, math.floor((room - need) / part)))
end

local answer = { now, tonumber(clock[2]), grant }
for _, window in ipairs(windows) do
  window.used, window.own = window.used + grant, window.own + grant
  -- A refused request changes nothing.
  if grant > 0 or window.changed then
    if window.is_new then redis.call('DEL', window.key) end
    redis.call('HSET', window.key, 'number', window.number, 'used', window.used, instance, window.own)
    if not window.has_expiry then
      -- Once for each window, and a minute after its end: the clock may be set back.
      redis.call('PEXPIREAT', window.key, ((window.number + 1) * window.span + 60) * 1000)
    end
  end
  answer[#answer + 1] = window.number
  answer[#answer + 1] = window.used
  answer[#answer + 1] = window.own
end
return answer
