# script: reap.lua
# a run whose lease ran out is not put back in line
s/gates().put(id, h, true)//
