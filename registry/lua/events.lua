-- ARGV: cursor, limit. The event a cursor names must still be in the stream, else something may be missing
-- behind it; before the first event there must be event 1.
local after, limit = unpack(ARGV)
if after == (redis.call('HGET', META, 'last') or '0') then
  return {'ok'}
end
local start = after == '0'
local found = redis.call('XRANGE', EVENTS, start and '-' or after, '+', 'COUNT', start and limit or limit + 1)
if not found[1] or (start and not found[1][1]:find('^1%-')) or (not start and found[1][1] ~= after) then
  return {'invalid'}
end
local reply = {'ok'}
for i = start and 1 or 2, #found do
  reply[#reply + 1] = found[i]
end
return reply
