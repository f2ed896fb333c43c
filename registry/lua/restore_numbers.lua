-- ARGV: tasks and last numbers in turn.
for i = 1, #ARGV, 2 do
  if tonumber(ARGV[i + 1]) > tonumber(redis.call('HGET', NUMBERS, ARGV[i]) or 0) then
    redis.call('HSET', NUMBERS, ARGV[i], ARGV[i + 1])
  end
end
return {'ok'}
