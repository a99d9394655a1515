# script: reap.lua
# leases that ran out are left alone
s/local most, spare = .*/local most, spare = tonumber(ARGV[1]), true/
