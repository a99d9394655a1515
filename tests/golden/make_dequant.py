"""Records tests/golden/dequant.safetensors: random blocks of each tensor type and the values that the PyPI package
gguf (its numpy reference, quants.py) gives for them. "TYPE.blocks": the stored bytes as int32; "TYPE.values": fp32.

usage: make_dequant.py OUT.safetensors        needs: gguf, numpy, torch
"""

import os
import sys

import gguf
import numpy
import torch

sys.path.insert(0, os.path.dirname(__file__))
import golden_file  # noqa: E402

BLOCKS = 16
# Where the half-precision scales of a block lie: random bytes would make some of them infinite.
SCALES = {
    "Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2],
    "Q6_K": [208], "F16": [0], "BF16": [], "F32": [],
}


def main():
    rng = numpy.random.default_rng(11)
    tensors = {}
    for name, at in SCALES.items():
        kind = gguf.GGMLQuantizationType[name]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        raw = rng.integers(0, 256, (BLOCKS, size), dtype=numpy.uint8)
        for offset in at:
            scale = (rng.standard_normal(BLOCKS) * 10.0 ** rng.integers(-7, 2, BLOCKS)).astype("<f2")
            raw[:, offset : offset + 2] = scale[:, None].view(numpy.uint8)
        if not at:  # plain numbers
            numbers = rng.standard_normal(BLOCKS).astype("<f4").view(numpy.uint8).reshape(BLOCKS, 4)
            raw = numbers[:, 4 - size :]
        raw = numpy.ascontiguousarray(raw)
        values = gguf.quants.dequantize(raw.reshape(1, -1), kind).astype(numpy.float32)
        assert values.size == BLOCKS * block and numpy.isfinite(values).all()
        tensors[name + ".blocks"] = torch.from_numpy(raw.reshape(-1).view("<i4").copy())
        tensors[name + ".values"] = torch.from_numpy(values.reshape(-1).copy())
    version = __import__("importlib.metadata", fromlist=["version"]).version("gguf")
    golden_file.save(sys.argv[1], tensors, {"gguf": version, "blocks": BLOCKS})


if __name__ == "__main__":
    main()
