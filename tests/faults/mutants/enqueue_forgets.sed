# script: enqueue.lua
# a run is acknowledged and not put in line
s/gates().put(id, h)//
