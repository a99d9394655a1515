# script: claim.lua
# a claimed run stays in line
s/redis.call('ZPOPMIN', \(.*\))$/redis.call('ZRANGE', \1, '0', '0', 'WITHSCORES')/; s/.*redis.call('ZREM', P .. ':ready:.*//; s/h.state == 'queued' and //
