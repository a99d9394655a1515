# script: claim.lua
# a claim leaves no lease that could run out
s/redis.call('ZADD', P .. ':leases', int(NOW + ttl), id)//
