# script: claim.lua
# a claimed run stays in line
s/redis.call('ZREM', ready, id)//; s/h.state == 'queued' and //
