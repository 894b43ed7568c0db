"""Broken files from sound ones: cut, flipped, spliced, repeated, and stuffed with what parsers dislike."""

import gzip
import json
import random
from collections.abc import Sequence

NASTY = (
    *(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\x1f\x8b", b"\x80", b"\r", b"\n", b"\r\n", b"\n\n\n", b"\t", b'"', b'""'),
    *(b"'", b",", b";", b"{", b"}", b"[", b"]", b":", b"\\", b"\\u0000", b"\\ud800", b'{"', b"null", b"NaN", b"true"),
    *(b"-Infinity", b"1e999", b"-1", b"0", b"9" * 5000, b"\xed\xa0\x80", b"\xe2\x80\xa8"),
    *(b"&a ", b"*a", b"<<: *a", b"!!python/object/apply:os.system ['true']", b"!!int x", b"? ", b"- ", b"|", b"%YAML"),
    *(b"2001-99-99", b"0x", b"0b", b"!!binary ", b"!!timestamp ", b"..", b"../../../etc/passwd", b"sent0", b"label"),
    *(b"F8_E4M3", b"I64", b"BOOL", b"F64", b"U16", b"C64", b"18446744073709551615", b"lora_A", b'"r": 1e9', b"$x^$"),
)
"""What parsers dislike."""


def mutate(draw: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """One to eight random changes, some of the whole file."""
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        # Half of the changes fall on the beginning, where long files have their headers.
        place = draw.randrange(min(len(data), draw.choice((len(data), 500))) + 1)
        end = min(len(data), place + draw.choice((1, 1, 2, 8, 64, 1000)))
        kind = draw.randrange(12)
        if kind == 0:
            data = data[:place]
        elif kind == 1:
            data = data[:place] + data[end:]
        elif kind == 2 and place < len(data):
            data = data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]
        elif kind == 3:
            data = data[:place] + data[place:end] * draw.choice((2, 3, 50)) + data[end:]
        elif kind == 4:
            other = draw.choice(others)
            begin = draw.randrange(len(other) + 1)
            data = data[:place] + other[begin : begin + draw.choice((4, 40, 400))] + data[end:]
        elif kind == 5:
            data = data[:place] + draw.randbytes(draw.choice((1, 2, 4, 8, 100))) + data[place:]
        elif kind == 6 and draw.random() < 0.3:
            data = gzip.compress(data, draw.choice((0, 6)))
        elif kind == 7 and draw.random() < 0.1:
            data = data.decode("utf-8", "replace").encode(
                draw.choice(("utf-16", "utf-8-sig", "utf-32", "cp500")), "replace"
            )
        else:
            data = data[:place] + draw.choice(NASTY) + data[place if kind == 8 else end :]
    return data


def structured(draw: random.Random, depth: int = 0) -> object:
    """A random JSON or YAML value."""
    kind = draw.randrange(9 if depth < 3 else 7)
    if kind == 7:
        return [structured(draw, depth + 1) for _ in range(draw.randrange(4))]
    if kind == 8:
        return {draw.choice(("a", "r", "peft_type", "text", "")): structured(draw, depth + 1) for _ in range(3)}
    numbers = (0, -1, 2, 1e308, -1e-308, float("nan"), float("inf"), 10**400, True)
    texts = ("", "x", "LORA", "\ud800", "é" * 50, "a\nb", "../..", "1e-4", "{")
    return draw.choice((None, draw.choice(numbers), draw.choice(texts)))


def reshape(draw: random.Random, data: bytes) -> bytes:
    """A JSON document or YAML mapping with one of its values replaced by a random one."""
    try:
        value = json.loads(data)
    except ValueError:
        lines = data.split(b"\n")
        place = draw.randrange(len(lines))
        key = lines[place].partition(b":")[0]
        lines[place] = key + b": " + json.dumps(structured(draw)).encode()
        return b"\n".join(lines)
    if isinstance(value, dict) and value:
        value[draw.choice(list(value))] = structured(draw)
    return json.dumps(value).encode()


def make_input(draw: random.Random, sound: Sequence[dict[str, bytes]], others: Sequence[bytes]) -> dict[str, bytes]:
    """One input of `sound` with one or all of them broken, or one missing."""
    files = dict(draw.choice(sound))
    broken = list(files) if draw.random() < 0.1 else [draw.choice(list(files))]
    for name in broken:
        if len(files) > 1 and draw.random() < 0.02:
            del files[name]
        else:
            change = reshape if draw.random() < 0.2 else mutate
            files[name] = change(draw, files[name]) if change is reshape else change(draw, files[name], others)
    return files
