-- Runs are numbered from above a number.
-- ARGV: number
if number(redis.call('GET', P .. ':seq')) < tonumber(ARGV[1]) then redis.call('SET', P .. ':seq', ARGV[1]) end
return 'OK'
