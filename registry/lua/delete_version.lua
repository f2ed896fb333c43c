-- ARGV 6…: task, version. Returns the object whose bytes nobody has any more.
local task, version = unpack(ARGV, 6)
local state = load_task(task)
if not state then
  return {'no task'}
end
if redis.call('HEXISTS', VERSIONS, version) == 0 then
  return {'no version'}
end
local names = {'in use'}
for alias, number in pairs(state.aliases) do
  if number == tonumber(version) then
    names[#names + 1] = alias
  end
end
if #names > 1 then
  return names
end

local digest = digest_of(tonumber(version))
redis.call('HDEL', VERSIONS, version)
redis.call('ZREM', ORDER, version)
redis.call('HDEL', DIGESTS, digest)
local latest = redis.call('ZREVRANGE', ORDER, 0, 0)[1]
state.latest = latest and tonumber(latest)
state.versions = state.versions - 1
save_task(task, state)
local gone = {'task', task, 'version', version, 'digest', digest}
emit('version_deleted', gone)
audit('version_deleted', gone)
return {'ok', release(digest)}
