-- ARGV 6: name.
if redis.call('HDEL', KEYRING, ARGV[6]) == 0 then
  return {'no key'}
end
emit('keys_changed')
audit('key_deleted', {'key', ARGV[6]})
return {'ok'}
