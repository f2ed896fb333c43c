-- ARGV 6…: name, record.
if redis.call('HSETNX', KEYRING, ARGV[6], ARGV[7]) == 0 then
  return {'conflict'}
end
emit('keys_changed')
audit('key_added', {'key', ARGV[6]})
return {'ok'}
