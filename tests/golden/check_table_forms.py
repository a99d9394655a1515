#!/usr/bin/env python3
"""Reads prompt tables that `softlaunch artifact convert` wrote, with the tools they are written for.

torch.load(weights_only=True) and tarfile for .nemo, numpy for .npy, PEFT for adapters: the tables of
nemo_prompts.nemo must come back bit for bit, through every form. Then the checkpoint of
tests/unit/test_pickle is loaded by torch and compared with the recorded torch_written.ckpt;
--record replaces that file.

usage: check_table_forms.py BUILD-FOLDER [--record]     (needs torch, transformers, peft, numpy, yaml)
"""
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile

import numpy
import peft
import torch
import transformers
import yaml
from safetensors.torch import load_file

HERE = os.path.dirname(os.path.abspath(__file__))


def check_nemo(path, tables):
    with tarfile.open(path, "r:") as tar:
        assert tar.getnames() == ["model_config.yaml", "model_weights.ckpt"]
        config = yaml.safe_load(tar.extractfile("model_config.yaml").read())
        data = tar.extractfile("model_weights.ckpt").read()
    assert zipfile.ZipFile(io.BytesIO(data)).testzip() is None
    state = torch.load(io.BytesIO(data), weights_only=True)["prompt_table"]
    assert config["existing_tasks"] == list(tables) == [t["taskname"] for t in config["task_templates"]]
    assert len(state) == 2 * len(tables)
    for task, rows in tables.items():
        assert torch.equal(state[f"prompt_table.{task}.prompt_embeddings.weight"], rows)
        assert state[f"prompt_table.{task}.indices"].tolist() == list(range(len(rows)))


def check_npy(path, tables):
    array = numpy.load(path)
    longest = max(len(rows) for rows in tables.values())
    assert array.dtype == numpy.float32 and array.shape == (len(tables), longest, 16), array.shape
    for got, rows in zip(array, tables.values()):
        assert (got[:len(rows)] == rows.numpy()).all() and (got[len(rows):] == 0).all()


def check_peft(folder, tables):
    for task, rows in tables.items():
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
            vocab_size=16, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0))
        adapted = peft.PeftModel.from_pretrained(model, os.path.join(folder, task))
        assert torch.equal(adapted.get_prompt(1)[0], rows)


def main():
    build, record = sys.argv[1], "--record" in sys.argv
    golden = load_file(os.path.join(HERE, "nemo.safetensors"))
    tables = {"a": golden["prompts.a"], "b": golden["prompts.b"]}
    out = tempfile.mkdtemp()

    def convert(source, target, *more):
        subprocess.run([os.path.join(build, "bin", "softlaunch"), "artifact", "convert", source,
                        os.path.join(out, target), *more], check=True, stdout=subprocess.DEVNULL)
        return os.path.join(out, target)

    try:
        ours = convert(os.path.join(HERE, "nemo_prompts.nemo"), "ours.safetensors")
        for task, rows in load_file(ours).items():
            assert torch.equal(rows, tables[task])
        check_nemo(convert(ours, "again.nemo"), tables)
        npy = convert(ours, "t.npy")
        check_npy(npy, tables)
        # names and templates of the .npy are new: virtual tokens at the head, as PEFT can have them
        named = convert(npy, "named.nemo", "--task", "a", "--task", "b")
        check_nemo(named, tables)
        adapters = convert(named, "adapters")
        check_peft(adapters, tables)
        check_npy(convert(adapters, "u.npy"), tables)

        ckpt, recorded = os.path.join(out, "x.ckpt"), os.path.join(HERE, "torch_written.ckpt")
        subprocess.run([os.path.join(build, "tests", "unit", "test_pickle")], stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, check=not record, cwd=os.path.join(HERE, "..", ".."),
                       env={**os.environ, "SL_CHECKPOINT_OUT": ckpt})
        for mmap in False, True:
            state = torch.load(ckpt, weights_only=True, mmap=mmap)["table"]
            assert state["first.weight"].tolist() == [[1, 2, 3], [4, 5, 6]]
            assert state["second"].tolist() == [0, 1] and state["second"].dtype == torch.int64
        if record:
            shutil.copyfile(ckpt, recorded)
        assert open(ckpt, "rb").read() == open(recorded, "rb").read()
    finally:
        shutil.rmtree(out)
    print("NeMo, NumPy and PEFT read every form, bit for bit")


main()
