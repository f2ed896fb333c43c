-- ARGV 6: task. Returns the objects whose bytes nobody has any more.
local task = ARGV[6]
if redis.call('ZREM', NAMES, task) == 0 then
  return {'no task'}
end
local reply = {'ok'}
for _, digest in ipairs(redis.call('HKEYS', DIGESTS)) do
  reply[#reply + 1] = release(digest)
end
redis.call('HDEL', TASKS, task)
redis.call('UNLINK', VERSIONS, ORDER, DIGESTS, MOVES)
emit('task_deleted', {'task', task})
audit('task_deleted', {'task', task})
return reply
