#!/usr/bin/env python3
"""Sums `ncu --csv --metrics gpu__time_duration.sum` (standard input) by kernel: time, share, launches; the first N (argument)."""
import collections
import csv
import sys

lines = [x for x in sys.stdin if x.startswith('"')]
rows = list(csv.DictReader(lines))
total, spent, count = 0.0, collections.Counter(), collections.Counter()
unit = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3}
for r in rows:
    us = float(r["Metric Value"].replace(",", "")) * unit[r["Metric Unit"]]
    name = r["Kernel Name"].split("(")[0][:70]
    spent[name] += us
    count[name] += 1
    total += us
for name, us in spent.most_common(int(sys.argv[1]) if len(sys.argv) > 1 else 40):
    print("%9.1f us %5.1f %% %5d  %s" % (us, 100 * us / total, count[name], name))
print("%9.1f us in %d launches" % (total, len(rows)))
