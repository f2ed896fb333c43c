-- ARGV: a time, objects that were seen. Of these and of the announced ones, returns those that no digest has
-- and that nobody announced since that time. From now on their uploads can no longer be completed.
local since, reply, met = ARGV[1], {}, {}

local function look(object)
  local announced = redis.call('ZSCORE', UPLOADS, object)
  if met[object] or (announced and tonumber(announced) >= tonumber(since)) then
    return
  end
  met[object] = true
  if redis.call('HGET', BLOBS, object:match('^[^.]*')) ~= object then
    redis.call('ZADD', UPLOADS, 0, object)
    reply[#reply + 1] = object
  end
end

for _, object in ipairs(redis.call('ZRANGEBYSCORE', UPLOADS, '-inf', '(' .. since)) do
  look(object)
end
for i = 2, #ARGV do
  look(ARGV[i])
end
return reply
