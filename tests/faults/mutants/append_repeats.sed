# script: append.lua
# a batch that is sent again is written again
s/^if batch <= .*//
