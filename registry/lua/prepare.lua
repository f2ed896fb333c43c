-- Claim an unused place; ARGV: schema, identity if there is none yet, where bytes are kept.
redis.call('HSETNX', META, 'schema', ARGV[1])
redis.call('HSETNX', META, 'identity', ARGV[2])
redis.call('HSETNX', META, 'bytes', ARGV[3])
local found = redis.call('HMGET', META, 'schema', 'identity', 'bytes')
return {found[1], found[2], found[3], redis.call('HLEN', BLOBS)}
