"""Writes a safetensors file that is the same bytes for the same content, which its own library's is not."""

import json

import numpy


def save(path, tensors, metadata):
    """tensors: name -> torch tensor, int32 or float32. metadata: name -> anything, kept as text."""
    header = {"__metadata__": {k: str(metadata[k]) for k in sorted(metadata)}}
    blobs, end = [], 0
    for name in sorted(tensors):
        a = tensors[name].detach().contiguous().numpy()
        dtype = {numpy.dtype("int32"): "I32", numpy.dtype("float32"): "F32"}[a.dtype]
        header[name] = dict(dtype=dtype, shape=list(a.shape), data_offsets=[end, end + a.nbytes])
        blobs.append(a.astype(a.dtype.newbyteorder("<")).tobytes())
        end += a.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text + b"".join(blobs))
