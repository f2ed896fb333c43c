-- ARGV 6…: task, digest, record, promote (1 or 0), object, whether the object is new (1 or 0), and for a copy
-- from another registry the version's number, else nothing.
-- A new object must still be announced in UPLOADS: if a sweep took it away, its bytes are gone.
local task, digest, record, promote, object, is_new, given = unpack(ARGV, 6)
local replaced = ''
local known = redis.call('HGET', DIGESTS, digest)
local current = redis.call('HGET', BLOBS, digest)

if given ~= '' then
  local stored = redis.call('HGET', VERSIONS, given)
  if (known and known ~= given) or (stored and stored ~= record) then
    return {'conflict'}
  end
end

if is_new == '1' then
  if tonumber(redis.call('ZSCORE', UPLOADS, object) or 0) == 0 then
    return {'lost'}
  end
  if current then
    replaced = current
    redis.call('ZADD', UPLOADS, 0, current)
  end
  redis.call('ZREM', UPLOADS, object)
  redis.call('HSET', BLOBS, digest, object)
elseif current ~= object then
  return {'lost'}
end

local state = load_task(task)
local number = known
if not known then
  if not state then
    state = {created = ARGV[1], versions = 0, aliases = {}}
    redis.call('ZADD', NAMES, 0, task)
  end
  if given == '' then
    number = text(redis.call('HINCRBY', NUMBERS, task, 1))
  else
    number = given
    if tonumber(given) > tonumber(redis.call('HGET', NUMBERS, task) or 0) then
      redis.call('HSET', NUMBERS, task, given)
    end
  end
  redis.call('HSET', VERSIONS, number, record)
  redis.call('ZADD', ORDER, number, number)
  redis.call('HSET', DIGESTS, digest, number)
  redis.call('HINCRBY', USES, digest, 1)
  state.versions = state.versions + 1
  state.latest = math.max(state.latest or 0, tonumber(number))
  local added = {'task', task, 'version', number, 'digest', digest}
  emit('version_added', added)
  audit('version_added', added)
end

local production = state.aliases['production']
if given == '' and (not production or (promote == '1' and production ~= tonumber(number))) then
  set_alias(task, state, 'production', tonumber(number))
end
save_task(task, state)
return {'ok', number, redis.call('HGET', VERSIONS, number), known and 0 or 1, replaced}
