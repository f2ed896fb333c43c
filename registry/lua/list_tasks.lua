-- ARGV: the name to begin behind or nothing, limit. Names and states in turn.
local after, limit = unpack(ARGV)
local from = after == '' and '-' or '(' .. after
local reply = {}
for _, name in ipairs(redis.call('ZRANGEBYLEX', NAMES, from, '+', 'LIMIT', 0, limit)) do
  reply[#reply + 1] = name
  reply[#reply + 1] = redis.call('HGET', TASKS, name)
end
return reply
