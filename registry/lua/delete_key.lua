-- ARGV 4: name.
if redis.call('HDEL', KEYRING, ARGV[4]) == 0 then
  return {'no key'}
end
emit('keys_changed')
return {'ok'}
