-- Records that an instance runs, and returns how many do.
--
-- KEYS  the instances, by the time of their last heartbeat
-- ARGV  instance, its name; the silence in milliseconds after which an instance is gone; 1 if this instance leaves
local instance, silence, leaves = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1'
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

if type(redis.pcall('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - silence)) == 'table' then
  -- An error: the key has a value of another type, which is not Keystile's.
  redis.call('DEL', KEYS[1])
end
if leaves then
  redis.call('ZREM', KEYS[1], instance)
  return { 0 }
end
local is_new = redis.call('ZADD', KEYS[1], now, instance)
redis.call('PEXPIRE', KEYS[1], silence)

-- The position is the same in the view of every instance. It decides who gets the remainder when a limit is divided.
local all, position, awake = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES'), 0, 0
for i = 1, #all, 2 do
  if all[i] < instance then position = position + 1 end
  if tonumber(all[i + 1]) > now - 3000 then awake = awake + 1 end
end
return { tonumber(clock[1]), tonumber(clock[2]), is_new, #all / 2, position, awake }
