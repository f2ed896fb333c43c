-- ARGV 6…: task, alias, version, whether to compare (1 or 0), the version expected or nothing.
local task, alias, version, compare, expected = unpack(ARGV, 6)
local state = load_task(task)
if not state then
  return {'no task'}
end
if redis.call('HEXISTS', VERSIONS, version) == 0 then
  return {'no version'}
end
local current = state.aliases[alias]
local named = current and text(current) or ''
if compare == '1' and named ~= expected then
  return {'conflict', named}
end
if named == version then
  return {'ok', get_move(alias, count_moves(alias))}
end
local move = set_alias(task, state, alias, tonumber(version))
save_task(task, state)
return {'ok', move}
