-- ARGV: task, the number to begin behind, limit. Numbers and records in turn.
local task, after, limit = unpack(ARGV)
if redis.call('HEXISTS', TASKS, task) == 0 then
  return {'no task'}
end
local reply = {'ok'}
for _, number in ipairs(redis.call('ZRANGEBYSCORE', ORDER, '(' .. after, '+inf', 'LIMIT', 0, limit)) do
  reply[#reply + 1] = number
  reply[#reply + 1] = redis.call('HGET', VERSIONS, number)
end
return reply
