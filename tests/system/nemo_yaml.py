#!/usr/bin/env python3
"""A NeMo YAML from `data squad` to its prompt table: trained by hand and through the queue, from the same file."""
from job_fixture import *

w = Jobs()
WORKER = os.path.join(os.path.dirname(BIN), "softlaunch-worker")
THINGS = ["teapot", "kettle", "spoon", "ladle", "sieve", "grater", "whisk", "funnel"]
COLOUR = ["red", "blue", "green", "black"]
made = {}


def squad(articles, seed):
    """A made-up SQuAD v2.0 file; every third question has no answer."""
    data = []
    for a in range(articles):
        qas, thing, colour = [], THINGS[(a + seed) % len(THINGS)], COLOUR[(a * 3 + seed) % len(COLOUR)]
        for q in range(6):
            answers = [] if q % 3 == 2 else [{"text": colour, "answer_start": 4}, {"text": "a " + colour, "answer_start": 4}]
            qas.append({"id": f"{seed}-{a}-{q}", "question": f"colour {q}", "answers": answers, "is_impossible": not answers})
        data.append({"title": thing, "paragraphs": [{"context": f"the {colour} {thing}", "qas": qas}]})
    return json.dumps({"version": "v2.0", "data": data})


YAML = """
name: Tiny_Squad
trainer:
  devices: 1
  accelerator: gpu
  num_nodes: 1
  precision: 32
  logger: False
  max_epochs: null
  max_steps: 12
  val_check_interval: 4
exp_manager:
  exp_dir: null
  name: ${name}
  create_early_stopping_callback: False
  checkpoint_callback_params:
    model_parallel_size: ${model.tensor_model_parallel_size}
model:
  seed: 1234
  virtual_prompt_style: 'p-tuning'
  tensor_model_parallel_size: 1
  global_batch_size: 8
  micro_batch_size: ${model.global_batch_size}
  restore_path: null
  language_model_path: ???
  existing_tasks: []
  new_tasks: ['squad']
  task_templates:
  - taskname: "squad"
    prompt_template: "<|VIRTUAL_PROMPT_0|> {context} {question} Answer:{answer}"
    total_virtual_tokens: 5
    virtual_token_splits: [5]
    truncate_field: "context"
    answer_only_loss: True
    answer_field: "answer"
  p_tuning:
    encoder_type: "mlp"
    dropout: 0.0
    num_layers: 2
    encoder_hidden: 24
  data:
    train_ds: [sq/squad_train.jsonl]
    validation_ds: [sq/squad_val.jsonl]
    add_eos: True
    num_workers: 8
  optim:
    name: fused_adam
    lr: 1e-4
    sched:
      name: CosineAnnealing
      warmup_steps: 2
      monitor: val_loss
"""


def hand(*args):
    """The command in the folder of the test, on one thread."""
    env = dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    return subprocess.run([BIN, *args], cwd=w.dir, env=env, capture_output=True, text=True, timeout=60)


def within(part, whole):
    """The server has filled in the defaults."""
    if isinstance(part, dict):
        return all(k in whole and within(v, whole[k]) for k, v in part.items())
    if isinstance(part, list):
        return len(part) == len(whole) and all(map(within, part, whole))
    return part == whole


def rows_of_squad():
    w.write("train-v2.json", squad(8, 0))
    w.write("dev-v2.json", squad(3, 5))
    r = hand("data", "squad", "--train", "train-v2.json", "--dev", "dev-v2.json", "--out", "sq", "--topic", "--subset", "20")
    assert r.returncode == 0, r.stderr
    count = {s: sum(1 for _ in open(f"{w.dir}/sq/squad_{s}.jsonl"))
             for s in ("train", "val", "test", "test_ground_truth", "short_train", "short_val")}
    assert count == {"train": 32, "val": 12, "test": 18, "test_ground_truth": 18, "short_train": 20, "short_val": 2}, count


def trained_by_hand():
    w.write("tiny.yaml", YAML)
    r = hand("train", "--config", "tiny.yaml", f"model.language_model_path={MODEL}", "model.optim.lr=3e-4",
             "++model.p_tuning.init_std=0.01")
    assert r.returncode == 0, r.stdout + r.stderr
    assert "tiny.yaml: ignored, since they mean nothing here: trainer.accelerator, trainer.num_nodes, trainer.logger, " \
           "exp_manager.checkpoint_callback_params.model_parallel_size, model.tensor_model_parallel_size, " \
           "model.data.num_workers, model.optim.sched.monitor\n" in r.stderr, r.stderr
    assert "results go to nemo_experiments/Tiny_Squad/out" in r.stderr, r.stderr
    run = json.load(open(f"{w.dir}/nemo_experiments/Tiny_Squad/run.json"))
    made["config"] = run["config"]
    assert run["config"]["model"]["optim"]["lr"] == 3e-4 and run["config"]["model"]["micro_batch_size"] == 8, run
    assert run["config"]["trainer"] == {"devices": 1, "precision": 32, "max_epochs": -1, "max_steps": 12,
                                        "val_check_interval": 4}, run
    made["table"], _ = tensors(f"{w.dir}/nemo_experiments/Tiny_Squad/out/prompt_table.safetensors")
    assert list(made["table"].values())[0][0][0] == 5, made["table"].keys()


def another_folder():
    r = hand("train", "--config", "tiny.yaml", "--run-dir", "other", f"model.language_model_path={MODEL}", "trainer.max_steps=2")
    assert r.returncode == 0, r.stdout + r.stderr
    assert os.path.exists(f"{w.dir}/other/out/prompt_table.safetensors")
    r = hand("train", "--config", "tiny.yaml", f"model.language_model_path={MODEL}", "trainer.max_steps=2",
             "exp_manager.explicit_log_dir=logs/${name}")
    assert r.returncode == 0, r.stdout + r.stderr
    assert os.path.exists(f"{w.dir}/logs/Tiny_Squad/out/prompt_table.safetensors")


def scored_against_all_answers():
    """data squad's ground truth as test rows: any answer of a row's list is right."""
    truth = "sq/squad_test_ground_truth.jsonl"
    for turn in range(2):
        r = hand("train", "--config", "tiny.yaml", "--run-dir", f"scored-{turn}", f"model.language_model_path={MODEL}",
                 "trainer.max_steps=4", f"model.data.test_ds={truth}", "inference.tokens_to_generate=4")
        assert r.returncode == 0, r.stdout + r.stderr
        rows = [json.loads(line) for line in open(f"{w.dir}/scored-{turn}/out/predictions.jsonl")]
        assert len(rows) == 18 and (turn or sum(row["answer"] == [] for row in rows) == 6), rows
        score = json.load(open(f"{w.dir}/scored-{turn}/out/metrics.json"))["tasks"][0]
        assert score["rows"] == 18 and score["exact_match"] == turn, score    # nothing learned: no colour is named
        # The same run again, now that what it says is the second of the answers.
        for row in rows:
            row["answer"] = ["none of it", row["prediction"]]
        truth = w.write("truth.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def the_same_by_the_queue():
    w.agent()
    w.artifact("sq", *(f"{w.dir}/sq/squad_{s}.jsonl" for s in ("train", "val")))
    r = w.command("enqueue", "--config", f"{w.dir}/tiny.yaml", "model.language_model_path=tiny:latest",
                  "model.optim.lr=3e-4", "+model.p_tuning.init_std=0.01", "priority=high",
                  "model.data.train_ds=[sq:latest/squad_train.jsonl]", "model.data.validation_ds=sq:latest/squad_val.jsonl",
                  "--wait")
    assert r.returncode == 0, r.stdout + r.stderr
    run = w.run(r.stdout.split()[0])
    assert run["spec"]["name"] == "tiny_squad" and run["spec"]["priority"] == "high", run["spec"]
    assert within(made["config"], run["spec"]["config"]), (run["spec"]["config"], made["config"])
    table, _ = tensors(w.result(run["run"]) + "/prompt_table.safetensors")
    assert table == made["table"]    # to the bit


def mistakes():
    model = f"model.language_model_path={MODEL}"
    for args, text in [
        ([], "  model.language_model_path: it has to be given: model.language_model_path=...\n"),
        ([model, "model.optim.lrr=1"], '  model.optim.lrr: unknown key; the nearest known key is "lr"\n'),
        ([model, "trainer.max_step=1"], '  trainer.max_step: unknown key; the nearest known key is "max_steps"\n'),
        ([model, "model.nemo_path=${oc.env:HOME}"], "${oc.env:HOME} asks for what is outside of the file"),
        ([model, "model.nemo_path=${model.nothing}"], "${model.nothing} refers to a key that is not there"),
        ([model, "model.data.train_ds=[none.jsonl]"], "none.jsonl: no such file"),
        ([model, "trainer.limit_val_batches=2"], "  trainer.limit_val_batches: softlaunch has nothing like it"),
    ]:
        for command in ("train", "enqueue"):
            if command == "enqueue" and "no such file" in text:    # a path of the agent's machine
                continue
            r = hand(command, "--config", "tiny.yaml", *args)
            assert r.returncode == 1 and text in r.stderr, (command, args, r.returncode, r.stderr)
    w.write("twice.yaml", "name: a\nmodel:\n  seed: 1\n  seed: 2\n")
    r = hand("train", "--config", "twice.yaml")
    assert r.returncode == 1 and 'twice.yaml:4: the key "seed" is there twice' in r.stderr, r.stderr
    r = hand("train", "--config", "tiny.yaml", "--run-dir", "allowed", "--allow-unknown", model, "trainer.max_steps=1",
             "model.optim.lrr=1")
    assert r.returncode == 0 and 'model.optim.lrr is ignored: unknown key; the nearest known key is "lr"' in r.stderr, r.stderr


def rows_are_checked():
    r = hand("data", "check", "--config", "tiny.yaml", "--model", MODEL, "--rows", "1", "--data", "sq/squad_val.jsonl")
    assert r.returncode == 0 and "12 rows read, 12 kept" in r.stdout, r.stdout + r.stderr
    r = hand("data", "check", "--config", "tiny.yaml", "--model", MODEL, "--rows", "1")
    assert r.returncode == 0 and "32 rows read, 32 kept" in r.stdout, r.stdout + r.stderr


tap(w, [rows_of_squad, trained_by_hand, another_folder, scored_against_all_answers, the_same_by_the_queue, mistakes, rows_are_checked])
