-- ARGV 6…: task, alias. Walks from the last move along `undo`, over versions that are gone.
local task, alias = unpack(ARGV, 6)
local state = load_task(task)
if not state then
  return {'no task'}
end
local last = count_moves(alias)
if last == 0 then
  return {'no alias'}
end
local step = cjson.decode(get_move(alias, last)).undo
while step do
  local move = cjson.decode(get_move(alias, step))
  if move.version ~= state.aliases[alias] and redis.call('HEXISTS', VERSIONS, text(move.version)) == 1 then
    local made = move_alias(task, state, alias, move.version, 'rollback', move.undo)
    save_task(task, state)
    return {'ok', made}
  end
  step = move.undo
end
return {'no alias'}
