#!/usr/bin/env python3
"""Independent p-tuning trials over one frozen model on one GPU: ours together in one worker, PEFT's one after another.

    gpu_trials.py --worker PATH [--models gpt-125m:500,gpt-1.3b:500,gpt-5b:100:fp8] [--trials 16] [--json FILE]

MODEL:STEPS[:PRECISION] says how many steps our side runs, and in what (bf16). Squad profile, 8 rows a step and trial, three-layer MLP encoder of width 2048,
bf16; the trials differ in seed and learning rate. Ours is `softlaunch-worker train` from its start to its end, the tables on
disk. Where STEPS is below --full, the seconds of --full steps are the measured ones and the rest at the median step; STEPS must
last as long as a thread hashes the model (10 GB: 50 s), which the last checkpoint waits for.
PEFT's is trials x (start-up + --full x its median step), both measured: start-up in --starts processes of its own, from
their start to the end of the first step, less one median step. --check K: K trials of the first model also run alone for
--check-steps, in bf16 and fp32. The JSON file is there after each model. Needs torch, transformers, peft (not with --no-peft).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

ROWS, WIDTH = 8, 2048
UNTIMED = 5


def peft_child(folder, steps):
    """One PEFT run: tells when the first step is done, then its median step, as JSON lines."""
    import torch
    from peft import PromptEncoderConfig, TaskType, get_peft_model
    from transformers import AutoModelForCausalLM

    from gpu_models import VIRTUAL, batch
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").cuda()
    vocab = base.config.vocab_size
    model = get_peft_model(base, PromptEncoderConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=VIRTUAL["squad"], encoder_reparameterization_type="MLP",
        encoder_num_layers=2, encoder_hidden_size=WIDTH)).to("cuda")
    model.prompt_encoder.float()
    params = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(params, lr=1e-4, fused=True)
    g, times = torch.Generator().manual_seed(0), []
    for i in range(steps):
        b = batch("squad", ROWS, vocab, g)
        width = (max(map(len, b["ids"])) + 63) // 64 * 64
        pad = lambda rows: torch.tensor([r + [0] * (width - len(r)) for r in rows])
        ids, answer = pad(b["ids"]).cuda(), pad(b["answer"]).cuda()
        mask = pad([[1] * len(r) for r in b["ids"]]).cuda()
        torch.cuda.synchronize()
        t = time.time()
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=ids, attention_mask=mask, labels=torch.where(answer == 1, ids, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        opt.zero_grad()
        torch.cuda.synchronize()
        times.append(time.time() - t)
        if i == 0:
            print("{}", flush=True)
    print(json.dumps({"step_s": statistics.median(times[UNTIMED:])}))


def peft(folder, times, steps):
    runs = []
    for i in range(times):
        begun = time.monotonic()
        args = ["--peft-child", folder, "--steps", str(steps if i == 0 else UNTIMED + 5)]
        child = subprocess.Popen([sys.executable, __file__, *args], stdout=subprocess.PIPE, text=True)
        child.stdout.readline()
        first = time.monotonic() - begun
        rest = child.stdout.read()
        if child.wait():
            sys.exit("PEFT failed")
        runs.append((first, json.loads(rest)["step_s"]))
    step = runs[0][1]
    return {"step_s": step, "start_s": statistics.median(first for first, _ in runs) - step,
            "starts_s": [first - step for first, _ in runs]}


def trial(i, steps):
    return {"name": f"t{i:02d}", "overrides": {"model.seed": 100 + i, "model.optim.lr": 1e-3 * 1.2 ** (i % 8),
                                               "model.optim.sched.warmup_steps": min(50, steps // 4)}}


def run_json(model, data, steps, precision, trials):
    from gpu_models import spec
    made = spec("trials", model, {"train": [data]}, "squad",
                {"trainer": {"max_steps": steps, "val_check_interval": steps, "precision": precision},
                 "model": {"global_batch_size": ROWS, "micro_batch_size": ROWS,
                           "p_tuning": {"encoder_type": "mlp", "num_layers": 3, "encoder_hidden": WIDTH}}})
    return {**{k: made[k] for k in ("model", "datasets", "config")}, "trials": trials}


def ours(worker, device, run, folder):
    """Seconds from the start of the process: to the start event, every step, the end; losses [trial][step]."""
    os.makedirs(folder)
    with open(folder + "/run.json", "w") as f:
        json.dump(run, f)
    read, write = os.pipe()
    begun = time.monotonic()
    p = subprocess.Popen([worker, "train", "--run-dir", folder, "--device", device, "--events-fd", str(write)],
                         pass_fds=[write], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    os.close(write)
    out, at, losses, useful, cause = {}, {}, {}, 0, ""
    with os.fdopen(read) as events:
        for line in events:
            e, now = json.loads(line), time.monotonic() - begun
            if e["ev"] == "start":
                out["start_s"], out["kernel"] = now, e["kernel"]
            elif e["ev"] == "metric" and "loss" in e:
                at[e["step"]] = now
                losses.setdefault(e["trial"], []).append(e["loss"])
            elif e["ev"] == "checkpoint":
                out["checkpoint_s"] = now
            elif e["ev"] == "result" and e["state"] != "succeeded":
                cause = f"{e.get('cause')}: {e.get('msg')}"
    p.wait()
    out["end_s"] = time.monotonic() - begun
    tables = [f"{folder}/out/trials/{t['name']}/prompt_table.safetensors" for t in run["trials"]]
    if p.returncode or not all(map(os.path.exists, tables)):
        sys.exit(f"{folder}: {cause or p.stderr.read()[-500:]}")
    steps = sorted(at)
    between = [at[b] - at[a] for a, b in zip(steps, steps[1:])]
    out.update(steps=len(steps), first_step_s=at[steps[0]], last_step_s=at[steps[-1]],
               step_s=statistics.median(between) if between else None)
    return out, losses


def check(worker, device, run, folder, n, steps):
    """The first steps of n trials alone beside the same together: the largest difference of a loss, relative. rounding: the
    first of them alone in micro-batches of half the rows, which changes shapes and nothing else."""
    out = []
    for precision in ("bf16", "fp32"):
        r = json.loads(json.dumps(run))
        r["config"]["trainer"].update(max_steps=steps, val_check_interval=steps, precision=precision)
        _, together = ours(worker, device, r, f"{folder}/{precision}-together")
        chosen = r["trials"][:: max(1, len(r["trials"]) // n)][:n]
        alone = {}
        for t in chosen:
            alone[t["name"]] = ours(worker, device, {**r, "trials": [t]}, f"{folder}/{precision}-{t['name']}")[1][t["name"]]
        r["config"]["model"]["micro_batch_size"] = ROWS // 2
        first = chosen[0]["name"]
        halves = ours(worker, device, {**r, "trials": chosen[:1]}, f"{folder}/{precision}-halves")[1][first]
        far = lambda a, b: max(abs(x / y - 1) for x, y in zip(a, b))
        out.append({"precision": precision, "trials": n, "steps": steps, "loss_from": alone[first][0], "loss_to": alone[first][-1],
                    "difference": max(far(together[k], v) for k, v in alone.items()), "rounding": far(halves, alone[first])})
    return out


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--worker")
    args.add_argument("--models", default="gpt-125m:500,gpt-1.3b:500,gpt-5b:60")
    args.add_argument("--trials", type=int, default=16)
    args.add_argument("--full", type=int, default=500, help="steps of a trial that are compared")
    args.add_argument("--steps", type=int, default=40, help="timed steps of PEFT")
    args.add_argument("--check", type=int, default=0)
    args.add_argument("--check-steps", type=int, default=20)
    args.add_argument("--device", default="cuda")
    args.add_argument("--keep", help="folder for the models, as gpu_peft.py's")
    args.add_argument("--starts", type=int, default=3, help="processes in which PEFT's start-up is measured")
    args.add_argument("--no-peft", action="store_true")
    args.add_argument("--json")
    args.add_argument("--peft-child", help=argparse.SUPPRESS)
    args = args.parse_args()
    if args.peft_child:
        return peft_child(args.peft_child, args.steps)
    from gpu_models import MODELS, ensure_model, text_rows
    results, peers, keep = [], {}, args.keep or tempfile.mkdtemp()
    for part in args.models.split(","):
        name, steps, precision = (part + ":bf16").split(":")[:3]
        steps, model, work = int(steps), f"{keep}/{name}/model", tempfile.mkdtemp()
        if ensure_model(MODELS[name], model, args.device):
            os.sync()  # else our tables wait behind the model's bytes on their way to the disk
        with open(work + "/train.jsonl", "w") as f:
            f.write(text_rows("squad", ROWS * args.full))
        run = run_json(model, work + "/train.jsonl", steps, precision, [trial(i, steps) for i in range(args.trials)])
        r = {"model": name, "precision": precision, "trials": args.trials, "full_steps": args.full}
        r["ours"], _ = ours(args.worker, args.device, run, work + "/all")
        o = r["ours"]
        r["ours_s"] = o["end_s"] + max(0, args.full - steps) * (o["step_s"] or 0)
        if args.check and not results:
            r["check"] = check(args.worker, args.device, run, work, args.check, args.check_steps)
        if not args.no_peft:
            p = r["peft"] = peers[name] = peers.get(name) or peft(model, args.starts, UNTIMED + args.steps)
            r["peft_s"] = args.trials * (p["start_s"] + args.full * p["step_s"])
            r["ratio"] = r["peft_s"] / r["ours_s"]
            r["ratio_without_start"] = (args.trials * args.full * p["step_s"]) / (r["ours_s"] - o["first_step_s"] + o["step_s"])
        results.append(r)
        print(json.dumps(r), flush=True)
        if args.json:
            with open(args.json, "w") as f:
                json.dump({"trials": results}, f, indent=1)
    for r in results:
        o, p, c = r["ours"], r.get("peft"), r.get("check")
        print("%-9s %s %d trials x %d steps: ours %.1f s (%d steps run, start %.1f s, step %.1f ms)%s%s" % (
            r["model"], r["precision"], r["trials"], r["full_steps"], r["ours_s"], o["steps"], o["start_s"], 1e3 * o["step_s"],
            "; PEFT %.0f s (start %.1f s, step %.1f ms): %.1f times, %.1f without start-up" % (
                r["peft_s"], p["start_s"], 1e3 * p["step_s"], r["ratio"], r["ratio_without_start"]) if p else "",
            "".join("; %d alone in %s: losses within %.1e (rounding %.1e)" % (x["trials"], x["precision"], x["difference"],
                                                                             x["rounding"]) for x in c or [])))


if __name__ == "__main__":
    main()
