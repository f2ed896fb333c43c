-- KEYS: leases alone. ARGV: replica, what it had told. Returns whether it was dropped.
local leases = KEYS[1]
if redis.call('HGET', leases, ARGV[1]) ~= ARGV[2] then
  return {0}
end
redis.call('HDEL', leases, ARGV[1])
return {1}
