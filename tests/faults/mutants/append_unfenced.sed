# script: append.lua
# an old owner's events are taken
s/if lease == '' or h.lease ~= lease then return err(LOST) end//; s/^if batch <= .*//
