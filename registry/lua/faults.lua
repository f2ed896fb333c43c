-- ARGV: task. Says where its parts disagree.
local task = ARGV[1]
local state, reply = load_task(task), {}

local function fault(what)
  reply[#reply + 1] = what
end

if not state or not redis.call('ZSCORE', NAMES, task) then
  return {'it is deleted half-way'}
end
local count = redis.call('HLEN', VERSIONS)
if count ~= state.versions or count ~= redis.call('ZCARD', ORDER) or count ~= redis.call('HLEN', DIGESTS) then
  fault('its indexes do not agree on how many versions there are')
end
for _, number in ipairs(redis.call('ZRANGE', ORDER, 0, -1)) do
  local record = redis.call('HGET', VERSIONS, number)
  local digest = record and cjson.decode(record).digest
  if not record then
    fault('version ' .. number .. ' has no record')
  elseif redis.call('HGET', DIGESTS, digest) ~= number or redis.call('HEXISTS', USES, digest) == 0 then
    fault('version ' .. number .. ' is not indexed by its digest')
  end
  if tonumber(number) > tonumber(redis.call('HGET', NUMBERS, task) or 0) then
    fault('version ' .. number .. ' is beyond the last number given out')
  end
end
return reply
