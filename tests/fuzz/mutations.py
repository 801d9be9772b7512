"""Damage and malice, drawn from a seed: bytes, trees of JSON, headers, archives, pickles."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from safetensors.torch import load as load_tensors

from pellucid.weights.own_file import digest, write_tensors

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 1.5, -0.0, 2**31, 2**32, 2**63, 2**64, 10**30, 10**6, 10**8, 1e30, -1e308,
    float("nan"), float("inf"), "", "0", "12", "x", "x" * 5000, "\x00", "\ud800", "\x1b]0;title\x07", "../../x",
    "/etc/passwd", "=1+1", "model.safetensors", "float8_e4m3fn", "ä" * 300, [], {}, [1], [[[]]], [None] * 3, {"a": 1},
    {"model_type": "gpt2"}, [2**40] * 8, list(range(1000)), {str(i): i for i in range(300)},
]  # fmt: skip
"""What a field may hold that nobody expects there."""

RAW = ["1e999", "-1e999", "9" * 5000, "[" * 100_000, "[" * 900 + "]" * 900, '{"a":' * 2000, "nul", "'x'", "0x10", "+1",
       '{"a":1,"a":2}', '"\\ud800"', "1.", "-", "\ufeff1", "/*c*/1"]  # fmt: skip
"""What may stand where JSON expects a value."""

_PLACE = "\0raw"


def of_bytes(content: bytes, random: Random) -> bytes:
    """Flip, overwrite, insert, delete, repeat, cut off."""
    made = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8))):
        at = random.randrange(len(made) + 1)
        size = random.choice((1, 1, 2, 4, 8, 64))
        kind = random.randrange(7)
        if kind == 0 and at < len(made):
            made[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            made[at : at + size] = random.randbytes(size)
        elif kind == 2:
            made[at:at] = random.randbytes(size)
        elif kind == 3:
            del made[at : at + size]
        elif kind == 4:
            made[at:at] = made[at : at + 64 * size]
        elif kind == 5:
            made[at : at + size] = random.choice((b"\xff", b"\x00", b"\x7f")) * size
        elif random.random() < 0.3:
            del made[at:]
    return bytes(made)


def of_tree(tree: Any, random: Random) -> Any:
    """Replace, remove, add, rename or exchange something somewhere in a JSON value, in place as far as it goes."""
    holders = list(_holders(tree))
    if not holders:
        return random.choice(VALUES)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        holder, key = random.choice(holders)
        if (isinstance(holder, dict) and key not in holder) or (isinstance(holder, list) and key >= len(holder)):
            continue
        kind = random.randrange(8)
        if kind < 4:
            holder[key] = _nasty(random, holder[key])
        elif kind == 4:
            del holder[key]
        elif kind == 5:
            other, its = random.choice(holders)
            if (isinstance(other, dict) and its in other) or (isinstance(other, list) and its < len(other)):
                holder[key], other[its] = other[its], holder[key]
        elif isinstance(holder, dict):
            holder[random.choice(("", "x", f"{key}x", str(key).upper(), "\x1b[2J", "module." + str(key)))] = holder[key]
        else:
            holder.append(_nasty(random, holder[key]))
    return tree


def _nasty(random: Random, value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and random.random() < 0.5:
        return random.choice((value + 1, value - 1, -value, value * 2, value * 10**6, float(value), str(value)))
    return f"{_PLACE}{random.randrange(len(RAW))}" if random.random() < 0.15 else random.choice(VALUES)


def _holders(tree: Any) -> Any:
    if isinstance(tree, (dict, list)):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _holders(tree[key])


def as_json(tree: Any) -> str:
    """The text of a value, with the places of `RAW` filled in; a tree that holds itself has none."""
    try:
        text = json.dumps(tree)
    except (ValueError, RecursionError):
        return "[" * 10
    for number, raw in enumerate(RAW):
        text = text.replace(f'"\\u0000raw{number}"', raw)
    return text


def of_json(content: bytes, random: Random) -> bytes:
    """A JSON text with something else in its tree."""
    return as_json(of_tree(json.loads(content), random)).encode("utf-8", "surrogatepass")


def of_header(content: bytes, random: Random) -> bytes:
    """A safetensors file with something else in its header, or with more or less behind it."""
    end = 8 + int.from_bytes(content[:8], "little")
    header, data = content[8:end], content[end:]
    kind = random.randrange(6)
    if kind < 4:
        header = of_json(header, random)
    elif kind == 4:
        data = of_bytes(data, random)
    length = len(header) if kind != 5 else random.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(header) - 1, len(content)))
    return length.to_bytes(8, "little") + header + data


def of_own(kind: str) -> Callable[[bytes, Random], bytes]:
    """A file of one of our own formats that says something else, with the digest that it then has."""

    def mutate(content: bytes, random: Random) -> bytes:
        tensors = load_tensors(content)
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        text = metadata[kind]
        if random.random() < 0.6:
            text = as_json(of_tree(json.loads(text), random))
        else:
            tensors = _of_tensors(tensors, random)
        from pathlib import Path
        from tempfile import TemporaryDirectory

        with TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            write_tensors(path, tensors, {**metadata, kind: text, "pellucid.sha256": digest(tensors, text)})
            return path.read_bytes()

    return mutate


def _of_tensors(tensors: dict[str, torch.Tensor], random: Random) -> dict[str, torch.Tensor]:
    name = random.choice(sorted(tensors))
    tensor = tensors[name]
    kind = random.randrange(7)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[name] = tensor.to(random.choice((torch.float16, torch.int8, torch.float64, torch.bool, torch.int32)))
    elif kind == 2:
        tensors[name] = tensor.flatten()[: random.randrange(tensor.numel() + 1)].clone()
    elif kind == 3:
        tensors[name] = tensor[None].clone()
    elif kind == 4:
        tensors[name + random.choice(("x", ".", "\n"))] = tensor
    elif kind == 5 and tensor.numel():
        tensor.flatten()[random.randrange(tensor.numel())] = random.choice((0, 1, 127, 100))
    elif tensor.is_floating_point():
        tensors[name] = tensor * random.choice((float("nan"), float("inf"), -1.0, 1e30))
    else:
        tensors[name] = (tensor.long() * random.choice((-1, 2**40, 0))).to(tensor.dtype)
    return tensors


def of_archive(content: bytes, random: Random) -> bytes:
    """A zip archive with an entry changed, removed, renamed, doubled or packed otherwise."""
    entries = _entries(content)
    chosen = random.randrange(len(entries))
    name, data = entries[chosen]
    kind = random.randrange(7)
    if kind < 3:
        entries[chosen] = (name, of_pickle(data, random) if name.endswith(".pkl") else of_bytes(data, random))
    elif kind == 3:
        del entries[chosen]
    elif kind == 4:
        entries[chosen] = (random.choice((name + "x", "../" + name, name.upper(), "x")), data)
    elif kind == 5:
        entries.append((f"{name}.more", of_bytes(data, random)))
    packed = zipfile.ZIP_DEFLATED if kind == 6 else zipfile.ZIP_STORED
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", packed) as archive:
        for each, held in entries:
            archive.writestr(each, held)
    return made.getvalue()


def of_state(content: bytes, random: Random) -> bytes:
    """A PyTorch file that is sound, and says of a tensor, a name or a size what no model has."""
    whole = torch.load(io.BytesIO(content), weights_only=True)
    state = whole.get("model", whole)
    name = random.choice(sorted(state))
    tensor, kind = state[name], random.randrange(9)
    if kind == 0:
        state[name] = torch.zeros(1, 1).expand(random.choice((10**6, 10**8, 10**12)), 12)
    elif kind == 1:
        state[name] = tensor.to(random.choice((torch.float8_e4m3fn, torch.complex64, torch.bool, torch.int8)))
    elif kind == 2:
        state[name] = random.choice((tensor.to_sparse(), tensor.to("meta"), torch.nested.nested_tensor([tensor[:1]])))
    elif kind == 3:
        state[random.choice((7, None, (1, 2), "x" * 10**6, f"{name}\x1b]0;t\x07", b"bytes"))] = tensor
    elif kind == 4:
        state[name] = random.choice((None, 7, "text", [1.0] * 50, {"a": tensor}, tensor.new_empty(0), tensor.sum()))
    elif kind == 5:
        del state[name]
    elif kind == 6:
        state[name] = tensor.t() if tensor.dim() == 2 else tensor.flip(0)
    elif kind == 7 and "model_args" in whole:
        sizes = whole["model_args"]
        sizes[random.choice(sorted(sizes))] = random.choice((*VALUES, nested(24), 10**9, -1))
    else:
        state[name] = torch.full_like(tensor, random.choice((float("nan"), 1e38, -0.0)))
    made = io.BytesIO()
    torch.save(whole, made, _use_new_zipfile_serialization=content[:1] == b"P")
    return made.getvalue()


def of_key(content: bytes, random: Random) -> bytes:
    """A pickle of a dict whose key is such a tuple: to put it into the dict is to walk through it."""
    key = b"K\x01K\x02\x86"
    for number in range(random.choice((3, 20, 60, 200))):
        at = bytes([number])
        key += b"q" + at + b"h" + at + b"\x86"
    return b"\x80\x02}" + key + b"K\x01s."


def nested(depth: int) -> Any:
    """A tuple of two, each the same tuple of two, and so on: small in a file, endless to whoever walks through it."""
    value: Any = (1, 2)
    for _ in range(depth):
        value = (value, value)
    return value


def _entries(content: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


_OPCODES = (
    b"()0.1234FIJKLMNQRSTUVXabcdeghijloprstqu}]\x80\x81\x82\x83\x84\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8e\x93\x94\x95"
)


def of_pickle(content: bytes, random: Random) -> bytes:
    """A pickle with other instructions, other whole numbers, or a nested key."""
    made = bytearray(content)
    kind = random.randrange(4)
    if kind == 0:
        for _ in range(random.choice((1, 2, 5))):
            made[random.randrange(len(made))] = random.choice(_OPCODES)
    elif kind == 1:
        at = random.randrange(len(made))
        made[at:at] = bytes(random.choice(_OPCODES) for _ in range(random.choice((1, 3, 40))))
    elif kind == 2:
        at = random.choice([i for i, byte in enumerate(made[:-2]) if byte in b"KMJ"] or [0])
        made[at : at + 2] = b"J" + struct.pack("<i", random.choice((-1, 0, 2**31 - 1, 10**8, 10**6)))
    else:
        return of_bytes(content, random)
    return bytes(made)


def of_lines(content: bytes, random: Random) -> bytes:
    """A text with lines removed, doubled, exchanged or changed."""
    lines = content.split(b"\n")
    for _ in range(random.choice((1, 2, 5))):
        at = random.randrange(len(lines))
        kind = random.randrange(5)
        if kind == 0 and len(lines) > 1:
            del lines[at]
        elif kind == 1:
            lines[at:at] = [lines[at]] * random.choice((1, 50))
        elif kind == 2:
            other = random.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == 3:
            lines[at] = of_bytes(lines[at], random)
        else:
            lines[at:at] = [random.choice((b"", b"a", b"a b c", b" ", b"\xff\xfe", b"x" * 10_000, "ä ö".encode()))]
    return b"\n".join(lines)


def of_numbers(content: bytes, random: Random) -> bytes:
    """A file that begins with 32-bit whole numbers, of which one is another."""
    made = bytearray(content)
    at = 4 * random.choice((0, 1, 2, 3, 4, 5, 6, 7, random.randrange(len(made) // 4)))
    number = struct.unpack_from("<i", made, at)[0]
    other = random.choice((0, 1, -1, 2**31 - 1, -(2**31), number + 1, number - 1, number * 2, 10**6))
    made[at : at + 4] = struct.pack("<i", max(-(2**31), min(2**31 - 1, other)))
    return bytes(made)
