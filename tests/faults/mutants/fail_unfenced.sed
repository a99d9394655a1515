# script: fail.lua
# an old owner's failure overwrites a result
s/^if h.lease ~= lease then .*//
