#!/usr/bin/env python3
"""Prints the demo's table from a finished run and writes build/reports/demo.json. Fails when the goals are missed.

usage: demo_report.py RUN.json METRICS.json REPORT.json SECONDS CACHED COMMIT DEVICE
The untuned model is scored by generation and by likelihood of its labels; the better of the two counts.
"""
import json
import sys

run_path, metrics_path, report_path, seconds, cached, commit, device = sys.argv[1:]
GOAL_POINTS = 0.20  # over the commonest class and over the untuned model
run, metrics = json.load(open(run_path)), json.load(open(metrics_path))
tasks = []
for t in metrics["tasks"]:
    untuned = max(t["untuned_exact_match"], t.get("untuned_choice", 0.0))
    tasks.append(dict(name=t["name"], rows=t["rows"], accuracy_tuned=t["exact_match"], accuracy_untuned=untuned,
                      accuracy_majority=t["majority"], f1_tuned=t["f1"],
                      untuned_by_generation=t["untuned_exact_match"], untuned_by_likelihood=t.get("untuned_choice")))
artifacts = [f'{o["artifact"]}:{o["version"]}' for o in run["outputs"]]
print(f'{"task":<16}{"test rows":>10}{"tuned":>9}{"untuned":>9}{"majority":>10}')
for t in tasks:
    print(f'{t["name"]:<16}{t["rows"]:>10}{t["accuracy_tuned"]:>9.1%}{t["accuracy_untuned"]:>9.1%}{t["accuracy_majority"]:>10.1%}')
print("artifacts: " + ", ".join(artifacts))
print(f"{seconds} s{' (model from the cache)' if cached == 'true' else ''}")
command = "make demo" + (f" DEVICE={device}" if device != "cpu" else "")
json.dump(dict(command=command, commit=commit, device=device, seconds=int(seconds), cached=cached == "true", tasks=tasks,
               artifacts=artifacts), open(report_path, "w"), indent=1)
bad = [t["name"] for t in tasks if t["rows"] < 200
       or t["accuracy_tuned"] < max(t["accuracy_untuned"], t["accuracy_majority"]) + GOAL_POINTS]
if bad or len(tasks) < 2:
    sys.exit(f"the tuned prompts did not reach {GOAL_POINTS:.0%} over the untuned model and the commonest class on at least "
             f"200 rows: {', '.join(bad) or 'fewer than two tasks'}")
