-- ARGV 4…: name, record.
if redis.call('HSETNX', KEYRING, ARGV[4], ARGV[5]) == 0 then
  return {'conflict'}
end
emit('keys_changed')
return {'ok'}
