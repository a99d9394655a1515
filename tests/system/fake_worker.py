#!/usr/bin/env python3
"""A worker that trains nothing but speaks the wire and keeps its promises: same bits after a resume, checkpoints
that are complete, an end when its agent is gone. The run's name steers it: fake.STEPS.STEP_MS.MODE[.anything].
MODE: ok, crash (killed at half of the steps), crash-once (only on the first attempt), spec (fails for good),
stubborn (does not obey), timed (lr is the time), spam (many log lines), big (the checkpoint at a preemption has 100 MB more)."""
import argparse, hashlib, json, os, select, shutil, signal, sys, threading, time

p = argparse.ArgumentParser()
p.add_argument("train")
p.add_argument("--run-dir", required=True)
p.add_argument("--events-fd", type=int, required=True)
p.add_argument("--control-fd", type=int, required=True)
a = p.parse_args()
os.chdir(a.run_dir)
run = json.load(open("run.json"))
_, steps, step_ms, mode = run["name"].split(".")[:4]
steps, step_ms = int(steps), int(step_ms)

def send(**event):
    os.write(a.events_fd, (json.dumps(event) + "\n").encode())

wish = {"preempt": False, "cancel": False, "checkpoint": False, "pause": False, "paused": False, "deadline": None}

def boot_us():
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * 1e6)

def listen():
    buf = b""
    while True:
        if wish["deadline"] and boot_us() > wish["deadline"] and not wish["paused"]:
            os._exit(77)
        if not select.select([a.control_fd], [], [], 0.05)[0]:
            continue
        data = os.read(a.control_fd, 4096)
        if not data:
            os._exit(77)
        buf += data
        while b"\n" in buf:
            line, buf = buf.split(b"\n", 1)
            c = json.loads(line)
            if c["cmd"] == "deadline":
                wish["deadline"] = c["boot_us"]
            elif c["cmd"] == "resume":
                wish["pause"] = False
            else:
                wish[c["cmd"]] = True

def on_term(*_):
    wish["preempt"] = True

signal.signal(signal.SIGTERM, on_term)
threading.Thread(target=listen, daemon=True).start()

def checkpoint(step, state):
    path = f"checkpoints/step-{step}"
    os.makedirs(path + ".tmp", exist_ok=True)
    json.dump({"step": step, "state": state}, open(path + ".tmp/state.json", "w"))
    if mode == "big" and wish["preempt"]:
        open(path + ".tmp/weights", "wb").write(os.urandom(100_000_000))
    shutil.rmtree(path, ignore_errors=True)
    os.rename(path + ".tmp", path)
    send(ev="checkpoint", step=step, path=path, best=False)

def result(state, cause="ok", msg="", code=0, **more):
    send(ev="result", state=state, cause=cause, msg=msg, metrics=more)
    sys.exit(code)

assert os.path.exists(run["model"]), "no model"
for files in run["datasets"].values():
    for f in files:
        assert os.path.exists(f), f
step, state = 0, hashlib.sha256(open(run["datasets"]["train"][0], "rb").read()).hexdigest()
if os.path.exists("checkpoint/state.json"):
    c = json.load(open("checkpoint/state.json"))
    step, state = c["step"], c["state"]
send(ev="start", step=step, steps=steps, rows=1, threads=1, kernel="none", resumed=step > 0)
send(ev="log", level="info", msg=f"starting at step {step}")
print("a line on standard output", flush=True)
if mode == "spec":
    result("failed", "spec", "the template names a field that no row has", 1)
while step < steps:
    time.sleep(step_ms / 1000)
    step += 1
    state = hashlib.sha256((state + str(step)).encode()).hexdigest()
    send(ev="metric", step=step, epoch=0, loss=int(state[:6], 16) / 2**24, lr=time.time() if mode == "timed" else 0.1)
    if mode == "spam":
        for i in range(200):
            send(ev="log", level="info", msg=f"line {i} of step {step}")
    if step == (steps + 1) // 2 and (mode == "crash" or (mode == "crash-once" and run["attempt"] == 1)):
        print("about to crash", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "stubborn":
        continue
    if wish["cancel"]:
        result("cancelled", "cancelled", "", 76)
    if wish["preempt"]:
        checkpoint(step, state)
        result("preempted", "ok", "", 75)
    if wish["checkpoint"] or wish["pause"] or step % 5 == 0:
        wish["checkpoint"] = False
        checkpoint(step, state)
    while wish["pause"] and not wish["cancel"] and not wish["preempt"]:
        wish["paused"] = True
        time.sleep(0.01)
    wish["paused"] = False
os.makedirs("out", exist_ok=True)
open("out/prompt_table.safetensors", "w").write(state)
json.dump({"final": state}, open("out/metrics.json", "w"))
send(ev="metric", step=step, val_loss=0.5)
send(ev="prediction", question="q", answer="a", prediction="a")
result("succeeded", accuracy=1.0)
