# script: release.lua
# an old owner gives the run back a second time
s/^if h.lease ~= lease then .*//
