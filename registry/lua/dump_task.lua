-- ARGV: task. When it was made, its last number, then each alias with all its moves, oldest first.
local task = ARGV[1]
local state = load_task(task)
if not state then
  return {'no task'}
end
local histories = {}
for alias in pairs(state.aliases) do
  local history = {alias}
  for position = 1, count_moves(alias) do
    history[#history + 1] = get_move(alias, position)
  end
  histories[#histories + 1] = history
end
return {'ok', state.created, redis.call('HGET', NUMBERS, task), histories}
