-- Says that a sidecar is there, and tells how many are.
--
-- KEYS  the sidecars, by when they last said so
-- ARGV  me, the sidecar; after how many milliseconds of silence one is gone; whether this one leaves
local me, silence, leaves = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1'
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

if type(redis.pcall('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - silence)) == 'table' then
  -- An error: it is something else, and not ours.
  redis.call('DEL', KEYS[1])
end
if leaves then
  redis.call('ZREM', KEYS[1], me)
  return { 0 }
end
local is_new = redis.call('ZADD', KEYS[1], now, me)
redis.call('PEXPIRE', KEYS[1], silence)

-- A place in an order that all agree on: who gets what is over when a limit is divided.
local all, place, awake = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES'), 0, 0
for i = 1, #all, 2 do
  if all[i] < me then place = place + 1 end
  if tonumber(all[i + 1]) > now - 3000 then awake = awake + 1 end
end
return { tonumber(clock[1]), tonumber(clock[2]), is_new, #all / 2, place, awake }
