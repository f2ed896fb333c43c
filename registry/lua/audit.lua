-- ARGV: the number to begin behind, how many. Latest first.
return redis.call('XREVRANGE', AUDIT, '(' .. ARGV[1] .. '-0', '-', 'COUNT', ARGV[2])
