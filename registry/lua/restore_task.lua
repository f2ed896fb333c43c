-- ARGV 6…: task, when it was made, its last number, JSON of aliases with their moves, oldest first.
-- Aliases that are there already must have the same past.
local task, created, last, histories = unpack(ARGV, 6)
local state = load_task(task)
if not state then
  return {'no task'}
end
histories = cjson.decode(histories)
for alias in pairs(state.aliases) do
  if not histories[alias] then
    return {'conflict', alias}
  end
end
for alias, moves in pairs(histories) do
  if count_moves(alias) > #moves then
    return {'conflict', alias}
  end
  for position = 1, count_moves(alias) do
    if get_move(alias, position) ~= moves[position] then
      return {'conflict', alias}
    end
  end
end

state.created = created
if tonumber(last) > tonumber(redis.call('HGET', NUMBERS, task) or 0) then
  redis.call('HSET', NUMBERS, task, last)
end
for alias, moves in pairs(histories) do
  local last_move = cjson.decode(moves[#moves])
  local newest = last_move.version
  for position, move in ipairs(moves) do
    redis.call('HSET', MOVES, alias, text(position), alias .. ':' .. text(position), move)
  end
  if state.aliases[alias] ~= newest then
    state.aliases[alias] = newest
    tell_alias(task, alias, newest, last_move.kind, last_move.previous)
  end
end
save_task(task, state)
return {'ok'}
