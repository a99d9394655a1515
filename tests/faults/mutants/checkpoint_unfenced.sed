# script: checkpoint.lua
# an old owner names its checkpoint
s/if lease == '' or h.lease ~= lease then return err(LOST) end//; s/^if h.ckpt_step ~= .*//
