#!/usr/bin/env python3
"""Writes tests/golden/blocks.gguf: for every block type, random block bytes (tensor TYPE) and the f32 values that the
Python package `gguf` gives for them (tensor TYPE.values).  Needs `pip install gguf numpy`.

usage: make-blocks-golden.py OUT
"""
import sys

import gguf
import numpy as np

TYPES = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ4_NL".split()
# Byte offsets of the half-precision scales in a block.
HALVES = {"Q4_1": [0, 2], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
ROWS = 2


def random_blocks(name, count, random):
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    data = random.integers(0, 256, (count, size), dtype=np.uint8)
    if name == "Q8_K":
        data[:, :4] = random.normal(size=(count, 1)).astype("<f4").view(np.uint8)
    else:
        for at in HALVES.get(name, [0]):
            data[:, at:at + 2] = random.normal(size=(count, 1)).astype("<f2").view(np.uint8)
    return data, block


def values(name, data):
    if name == "Q8_K":  # the package has none: scale, 256 signed bytes, 16 sums
        return data[:, :4].copy().view("<f4") * data[:, 4:260].view(np.int8).astype(np.float32)
    return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name])


def main(out):
    random = np.random.default_rng(20261123)
    writer = gguf.GGUFWriter(out, "blocks")
    for name in TYPES:
        data, block = random_blocks(name, ROWS, random)
        expected = values(name, data).astype(np.float32).reshape(ROWS, block)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[name])
        writer.add_tensor(name + ".values", expected)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
