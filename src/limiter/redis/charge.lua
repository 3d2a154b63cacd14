-- Charges all windows of a key that have a limit, or none, and settles what a sidecar knows better.
--
-- KEYS  a hash for each window: number (which window of its span), used (by all), and a field for each
--       sidecar with its own part of that, so that what Redis forgot can be put back.
-- ARGV  need, want    charge this at least, or nothing; and up to that, if there is plenty
--       part          of what is left above the need, one such part may be taken ahead
--       me            the sidecar
--       and for each window: span in seconds; limit; the window that the sidecar knows; what it has used
--       in that, as far as it knows; what it gives back of that.
local need, want, part, me = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local clock = redis.call('TIME')
local now = tonumber(clock[1])

local windows, room = {}, math.huge
for i, key in ipairs(KEYS) do
  local at = 5 * i - 1
  local span, limit = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local known, mine, back = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
  local window = { key = key, span = span, number = math.floor(now / span), used = 0, mine = 0 }

  -- What is no hash is not ours: it is dropped with the first charge.
  local held = redis.pcall('HMGET', key, 'number', 'used', me)
  local number = tonumber(held[1])
  if number and number >= window.number then
    window.used, window.mine = tonumber(held[2]) or 0, tonumber(held[3]) or 0
    -- A clock that was set back a little: the window that was begun goes on. Set back a lot: what was
    -- used goes along, so that nothing is given twice, and nobody is locked out for as long.
    window.dated = number == window.number or number == window.number + 1
    if window.dated then window.number = number else window.changed = true end
  else
    window.fresh = true
  end

  if known == window.number then
    local forgotten = math.max(0, mine - window.mine)
    local returned = math.min(back, window.mine + forgotten)
    window.used = window.used + forgotten - returned
    window.mine = window.mine + forgotten - returned
    window.changed = window.changed or forgotten > 0 or returned > 0
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
  window.used, window.mine = window.used + grant, window.mine + grant
  -- Who is refused changes nothing.
  if grant > 0 or window.changed then
    if window.fresh then redis.call('DEL', window.key) end
    redis.call('HSET', window.key, 'number', window.number, 'used', window.used, me, window.mine)
    if not window.dated then
      -- Once for each window; a minute longer, for a clock that is set back.
      redis.call('PEXPIREAT', window.key, ((window.number + 1) * window.span + 60) * 1000)
    end
  end
  answer[#answer + 1] = window.number
  answer[#answer + 1] = window.used
  answer[#answer + 1] = window.mine
end
return answer
