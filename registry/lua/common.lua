-- Comes before every script. KEYS are the names of registry/redis_keys.py, in its order; a script without a
-- task gets the first ten. ARGV of a script that writes begins with the time, a random tag, the lengths of the
-- two streams, and who makes the change. Times and tags stay text, because Lua's numbers would round them.
local META, NAMES, NUMBERS, TASKS, EVENTS, KEYRING, USES, BLOBS, UPLOADS, AUDIT = unpack(KEYS, 1, 10)
local VERSIONS, ORDER, DIGESTS, MOVES = unpack(KEYS, 11, 14)

local function text(number)
  return string.format('%.0f', number)
end

-- The id is the event's number and a tag: numbers have no gaps, and after a restore or a failover that lost
-- events the same number comes with another tag, so that a reader can tell.
local function emit(kind, fields)
  local now, tag, length = ARGV[1], ARGV[2], ARGV[3]
  local id = text(redis.call('HINCRBY', META, 'events', 1)) .. '-' .. tag
  redis.call('XADD', EVENTS, 'MAXLEN', length, id, 'kind', kind, 'at', now, unpack(fields or {}))
  redis.call('HSET', META, 'last', id)
end

local function audit(action, fields)
  local now, length, actor = ARGV[1], ARGV[4], ARGV[5]
  local id = text(redis.call('HINCRBY', META, 'audits', 1)) .. '-0'
  redis.call('XADD', AUDIT, 'MAXLEN', length, id, 'action', action, 'at', now, 'actor', actor, unpack(fields))
end

local function load_task(task)
  local found = redis.call('HGET', TASKS, task)
  return found and cjson.decode(found)
end

local function save_task(task, state)
  redis.call('HSET', TASKS, task, cjson.encode(state))
end

local function digest_of(number)
  return cjson.decode(redis.call('HGET', VERSIONS, text(number))).digest
end

local function get_move(alias, position)
  return redis.call('HGET', MOVES, alias .. ':' .. text(position))
end

local function count_moves(alias)
  return tonumber(redis.call('HGET', MOVES, alias) or 0)
end

-- Add the event and the audit entry of an alias that was moved.
local function tell_alias(task, alias, version, kind, previous)
  local fields = {'task', task, 'version', text(version), 'alias', alias, 'digest', digest_of(version)}
  emit('alias_set', fields)
  if previous then
    fields[#fields + 1] = 'previous'
    fields[#fields + 1] = text(previous)
  end
  audit(kind == 'set' and 'alias_set' or 'alias_rolled_back', fields)
end

-- Point an alias somewhere; the caller saves `state`. Returns the move as JSON.
local function move_alias(task, state, alias, version, kind, undo)
  local position = count_moves(alias) + 1
  local move = cjson.encode({
    version = version, previous = state.aliases[alias], moved = ARGV[1], kind = kind, undo = undo,
  })
  redis.call('HSET', MOVES, alias, text(position), alias .. ':' .. text(position), move)
  tell_alias(task, alias, version, kind, state.aliases[alias])
  state.aliases[alias] = version
  return move
end

local function set_alias(task, state, alias, version)
  local last = count_moves(alias)
  return move_alias(task, state, alias, version, 'set', last > 0 and last or nil)
end

-- Note that one version less has these bytes. Bytes nobody has any more are unlinked from their digest at once;
-- the object they are in waits in UPLOADS, at time 0, for its removal.
local function release(digest)
  if redis.call('HINCRBY', USES, digest, -1) > 0 then
    return nil
  end
  redis.call('HDEL', USES, digest)
  local object = redis.call('HGET', BLOBS, digest)
  if object then
    redis.call('HDEL', BLOBS, digest)
    redis.call('ZADD', UPLOADS, 0, object)
  end
  return object
end
