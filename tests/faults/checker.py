"""Judges a history: what clients were told, against what there is in the end. Every rule names what a user would have
lost; `make faults` counts them, and tests/faults/mutants.py shows that each can be broken."""

FINAL = ("succeeded", "failed", "dead", "cancelled")


def check_run(run, record, versions, events, expected):
    """Violations (kind, text) of one acknowledged run. record: as the REST API gives it; versions: those of its own
    artifact, with the digest of the result's file as "state"; events: all of them, in order."""
    out = []

    def bad(kind, text):
        out.append((kind, f"run {run[:12]}: {text}"))

    if record is None:
        return [("lost", f"run {run[:12]} was acknowledged and is not there")]
    if record["state"] not in FINAL:
        bad("stuck", f"still {record['state']}, attempt {record['attempt']}")
        return out
    if record["state"] != "succeeded":
        bad("lost", f"ended as {record['state']}: {record['cause']}: {record['msg']}")
    if len(versions) > 1:
        bad("doubled", f"published {len(versions)} versions")
    if record["state"] == "succeeded":
        names = [o["version"] for o in record["outputs"] or []]
        if names != [v["version"] for v in versions]:
            bad("lost", f"its outputs say {names}, the store has {[v['version'] for v in versions]}")
        if any(v["state"] != expected for v in versions):
            bad("wrong", "other bits than those of an undisturbed run")
    elif versions:
        bad("doubled", f"published, although it ended as {record['state']}")
    attempt, ended, step, claims, published, paused = 0, False, {}, [], 0, True
    for e in events:
        if e["type"] == "outputs":    # the server's word that versions are durable: once, behind the end
            published += 1
        elif ended:
            bad("stale", f"an event of attempt {e['attempt']} ({e['type']}) behind its end")
        if e["attempt"] < attempt:
            bad("stale", f"an event of attempt {e['attempt']} behind one of attempt {attempt}")
        attempt = max(attempt, e["attempt"])
        if e["type"] == "state":
            state = e["data"]["state"]
            ended = ended or state in FINAL
            if state == "running" and e["data"].get("cause") != "lease_revived":
                claims.append(e["attempt"])
                paused = True    # no worker yet
        elif e["type"] == "phase" and e["data"]["phase"] == "paused":
            paused = True
        elif e["type"] == "start":
            # An owner whose lease could not be renewed in time stops its worker, says so, and starts one again when the
            # lease is still its own (reliability.md, 9): from its last checkpoint, or from the beginning.
            if not paused:
                bad("stale", f"a second worker in attempt {e['attempt']}")
            paused, step[e["attempt"]] = False, e["data"]["step"]
        elif e["type"] == "metric" and "loss" in e["data"]:
            if e["data"]["step"] <= step.get(e["attempt"], 0):
                bad("stale", f"step {e['data']['step']} of attempt {e['attempt']} came twice, or late")
            step[e["attempt"]] = e["data"]["step"]
    if published > 1:
        bad("doubled", f"its outputs were announced {published} times")
    if claims != sorted(set(claims)):
        bad("doubled", f"claimed by two owners: attempts {claims}")
    if record["state"] == "succeeded" and attempt and not ended:
        bad("lost", "no event tells its end")
    return out


def changed(run, before, after):
    """A run that has ended stays as it is, whoever wakes up."""
    keys = ("state", "attempt", "finished_ms", "cause", "msg", "step", "metrics", "checkpoint", "checkpoint_step",
            "preemptions", "failures", "lost")
    return [("stale", f"run {run[:12]}: {k} changed from {before[k]} to {after[k]} after its end")
            for k in keys if before[k] != after[k]]


def check_left(left):
    """left: what the queue holds when every run has ended, as {what: count}."""
    return [("stuck", f"{n} entries in {what} when all runs have ended") for what, n in left.items() if n]
