#!/usr/bin/env python3
"""Small .npy files without numpy, and .safetensors files of them, for the tests of the command.

    npy.py random FILE SHAPE [DTYPE] [SEED]     uniform numbers in -1..1; SHAPE like 1,2,8,16; DTYPE f4 f2 f8 i4 u1
    npy.py values FILE SHAPE NUMBERS [DTYPE]         these numbers, apart by blanks
    npy.py raw FILE DESCR ORDER SHAPETEXT BYTES [VERSION]   a header as given, then BYTES zero bytes
    npy.py close A B TOLERANCE                  fails unless both have one shape and close numbers
    npy.py shape FILE SHAPE DESCR               fails unless the file has that shape and type
    npy.py attention Q K V O [causal]           writes plain softmax attention in double precision
    npy.py pack FILE NAME=NPY...                a .safetensors file of these tensors
    npy.py unpack FILE [NAME NPY]               its tensor of that name; without one, prints what names it has
"""
import ast
import json
import math
import random
import struct
import sys

CODES = {"f4": "f", "f2": "e", "f8": "d", "i4": "i", "i8": "q", "u1": "B", "i1": "b"}


def header(descr, order, shape, version=1):
    text = f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}"
    text += " " * (63 - (10 + len(text)) % 64) + "\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text.encode()


def shape_of(text):
    return tuple(int(n) for n in text.split(",") if n)


def write(path, shape, values, code="f4"):
    with open(path, "wb") as file:
        file.write(header(("|" if code[1] == "1" else "<") + code, False, tuple(shape)))
        file.write(struct.pack(f"<{len(values)}{CODES[code]}", *values))


def read(path):
    data = open(path, "rb").read()
    assert data[:6] == b"\x93NUMPY", path
    length, = struct.unpack("<H", data[8:10])
    head = ast.literal_eval(data[10:10 + length].decode())
    code = head["descr"][1:]
    count = math.prod(head["shape"])
    body = data[10 + length:]
    assert len(body) == count * int(code[1]), f"{path}: {len(body)} bytes for {count} of {code}"
    return head["shape"], head["descr"], struct.unpack(f"<{count}{CODES[code]}", body)


def pack(path, pairs):
    entries, body = {}, b""
    for name, source in (pair.split("=", 1) for pair in pairs):
        shape, descr, values = read(source)
        data = struct.pack(f"<{len(values)}{CODES[descr[1:]]}", *values)
        code = descr[1].upper() + str(8 * int(descr[2]))
        entries[name] = {"dtype": code, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(entries).encode()
    open(path, "wb").write(struct.pack("<Q", len(text)) + text + body)


def unpack(path, name=None, to=None):
    data = open(path, "rb").read()
    length, = struct.unpack("<Q", data[:8])
    entries = json.loads(data[8:8 + length])
    if name is None:
        return print(*sorted(entries))
    code = {"F32": "f4", "I32": "i4"}[entries[name]["dtype"]]
    begin, end = entries[name]["data_offsets"]
    body = data[8 + length:][begin:end]
    write(to, entries[name]["shape"], struct.unpack(f"<{len(body) // 4}{CODES[code]}", body), code)


def attention(q_path, k_path, v_path, o_path, causal):
    (B, H, N, D), _, q = read(q_path)
    (_, G, M, _), _, k = read(k_path)
    Dv, v = read(v_path)[0][3], read(v_path)[2]
    out = []
    for b in range(B):
        for h in range(H):
            g = h // (H // G)
            for i in range(N):
                row = q[((b * H + h) * N + i) * D:][:D]
                keys = [j for j in range(M) if not causal or j <= i + M - N]
                at = lambda x, j, width: x[((b * G + g) * M + j) * width:][:width]
                scores = [sum(a * c for a, c in zip(row, at(k, j, D))) / math.sqrt(D) for j in keys]
                top = max(scores, default=0)
                weights = [math.exp(s - top) for s in scores]
                total = sum(weights) or 1
                sums = [0.0] * Dv
                for weight, j in zip(weights, keys):
                    for d, x in enumerate(at(v, j, Dv)):
                        sums[d] += weight / total * x
                out += sums
    write(o_path, (B, H, N, Dv), out)


def main(verb, *rest):
    if verb == "random":
        path, shape, code, seed = rest[0], shape_of(rest[1]), *(list(rest[2:]) + ["f4", "1"][len(rest) - 2:])
        numbers = random.Random(f"{seed} {path}")
        draw = numbers.uniform if code[0] == "f" else numbers.randint
        write(path, shape, [draw(-1, 1) if code[0] == "f" else draw(0, 100) for _ in range(math.prod(shape))], code)
    elif verb == "values":
        path, shape, numbers, code = (list(rest) + ["f4"])[:4]
        write(path, shape_of(shape), [(float if code[0] == "f" else int)(n) for n in numbers.split()], code)
    elif verb == "raw":
        path, descr, order, shape, count, version = (list(rest) + ["1"])[:6]
        open(path, "wb").write(header(descr, order, shape, int(version)) + bytes(int(count)))
    elif verb == "close":
        (a_shape, _, a), (b_shape, _, b) = read(rest[0]), read(rest[1])
        if a_shape != b_shape:
            sys.exit(f"{rest[0]} has shape {a_shape}, {rest[1]} {b_shape}")
        for n, (x, y) in enumerate(zip(a, b)):
            if not (x == y or abs(x - y) <= float(rest[2]) * max(1, abs(y))):
                sys.exit(f"element {n}: {x} in {rest[0]}, {y} in {rest[1]}")
    elif verb == "shape":
        shape, descr, _ = read(rest[0])
        if shape != shape_of(rest[1]) or descr != rest[2]:
            sys.exit(f"{rest[0]}: expected {rest[1]} {rest[2]}, got {shape} {descr}")
    elif verb == "attention":
        attention(*rest[:4], len(rest) > 4)
    elif verb == "pack":
        pack(rest[0], rest[1:])
    elif verb == "unpack":
        unpack(*rest)


main(*sys.argv[1:])
