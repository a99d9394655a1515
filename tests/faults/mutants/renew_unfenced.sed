# script: renew.lua
# an old owner takes its lease back from whoever has it
s/if h.lease ~= '' or h.last_lease ~= lease or h.state ~= 'queued' then return err(LOST) end//
