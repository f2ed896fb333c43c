-- ARGV: task, version.
local task, version = unpack(ARGV)
if redis.call('HEXISTS', TASKS, task) == 0 then
  return {'no task'}
end
local record = redis.call('HGET', VERSIONS, version)
return record and {'ok', record} or {'no version'}
