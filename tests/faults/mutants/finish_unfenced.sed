# script: finish.lua
# an old owner publishes, too
s/^if h.lease ~= lease then/if false then/
