-- ARGV: task, alias, limit. Latest first.
local task, alias, limit = unpack(ARGV)
if redis.call('HEXISTS', TASKS, task) == 0 then
  return {'no task'}
end
local reply, last = {'ok'}, count_moves(alias)
for position = last, math.max(1, last - tonumber(limit) + 1), -1 do
  reply[#reply + 1] = get_move(alias, position)
end
return reply
