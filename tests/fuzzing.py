"""Hostile bytes: how they are made of good ones, and how they are tried until one ends as nothing may end.

Rules:
  * A target is an entry for bytes: good examples, a door, and which refusals are allowed. Anything else that comes out is a
    finding: another exception, an answer that is none, a message without a bound, too much time, too much memory.
  * Mutants are wrong on every layer: bytes, numbers of a text, values and keys of a document; a target adds its own.
  * The process may use a fixed amount of memory, so a bomb is a MemoryError, which is no allowed end.
  * The same seed gives the same mutants; runs by coverage (atheris) start from a corpus that grows.
Targets: fuzz_models.py for model files, fuzz_entries.py for everything else. test_fuzz_*.py run a sample, soak.py runs hours.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import itertools
import json
import random
import re
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

__all__ = ["Target", "main", "mutants", "replace", "settle"]

ROOT = Path(__file__).resolve().parents[1]
LEFT = ROOT / "build/fuzz"
MEMORY = 1 << 30  # beyond what there was before the first mutant

Way = Callable[[bytes, random.Random, list[bytes]], bytes]


@dataclass(frozen=True)
class Target:
    """One entry for bytes.

    Attributes:
        seeds: good examples, made here and now.
        door: takes the bytes, and gives what came of them.
        refusals: what may be raised instead -> what that is called.
        check: looks at what the door gave. ways: how an example becomes a mutant. sample: of mutants, in `make test`.
        slow: seconds of the processor for one. modules: whose branches are counted.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    door: Callable[[bytes], object]
    ways: tuple[Way, ...]
    refusals: Callable[[], Mapping[type[Exception], str]]
    check: Callable[[object, bytes], None] = lambda made, data: None
    needs: tuple[str, ...] = ()
    sample: int = 1_000
    slow: float = 4.0
    modules: tuple[str, ...] = ("retailinfer",)


def settle(target: Target, data: bytes) -> str:
    """What came of it: "answered", or the name of a refusal. Anything else is raised."""
    start = time.process_time()
    refusals = target.refusals()
    said = None
    try:
        made = target.door(data)
    except tuple(refusals) as exc:
        ended = next(name for kind, name in refusals.items() if isinstance(exc, kind))
        said = str(exc)
    else:
        target.check(made, data)
        ended = "answered"
    assert said is None or 0 < len(said) < 900, f"a message of {len(said)} characters"
    took = time.process_time() - start
    assert took < target.slow, f"{took:.1f} s for {len(data)} bytes"
    return ended


# ---- mutants ---------------------------------------------------------------------------------------------------------------

# fmt: off
NUMBERS = (
    "0", "-0", "-1", "1", "2", "3", "127", "128", "255", "256", "65535", "65536", "16777216", "16777217", "2147483647",
    "2147483648", "-2147483648", "-2147483649", "4294967295", "4294967296", "9007199254740993", "9223372036854775807",
    "9223372036854775808", "-9223372036854775808", "18446744073709551616", "1e15", "1e19", "1e38", "3.5e38", "1e39", "1e308",
    "1e309", "-1e309", "1e-45", "1e-35", "1e-46", "5e-324", "0.5", "-0.5", "1.0000000000000002", "nan", "NaN", "inf", "-inf",
    "Infinity", "-Infinity", "", "x", "1_000", "0x10", "1e", ".", "9" * 400, "0." + "1" * 400, "\u0663",
    "1e1000000000", "True",
)
TOKENS = (
    *(bytes([b]) for b in b'{}[]":,\\/-+.eE0123456789tfnu \n\r\t\0=\xff\x80'),
    b"null", b"true", b"NaN", b"\n\n", b"=", b"Tree=0\n", b"end of trees\n", b"average_output\n", b"[" * 3000, b'{"a":' * 3000,
    b"[" * 100_000, b'"left_child":' * 50, b"\xef\xbb\xbf", b"\xed\xa0\x80",
    # UBJSON: counts and types, of elements that take no byte among them
    b"[$Z#l\x7f\xff\xff\xff", b"[$N#L\x7f" + b"\xff" * 7, b"[$T#l\x7f\xff\xff\xff", b"[$d#l\x7f\xff\xff\xff",
    b"[#l\x7f\xff\xff\xff", b"{$Z#l\x7f\xff\xff\xff", b"[$[#i\x7f", b"[$Z#L" + b"\xff" * 8, b"Sl\x7f\xff\xff\xff",
    b"SL" + b"\xff" * 8, b"l\x80\x00\x00\x00", b"D" + b"\x7f\xf8" + bytes(6), b"d\x7f\xc0\x00\x00", b"d\x7f\x80\x00\x00",
    b"Hi\x7f", b"L\x7f" + b"\xff" * 7, b"N" * 64,
    # protobuf: lengths
    b"\xff\xff\xff\xff\x0f", b"\x80\x80\x80\x80\x10", b"\x0a\x00", b"\xff" * 9 + b"\x01",
)
# fmt: on


def bytes_mutant(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 1, 2, 4, 8, 64, 1024)))
        how = rng.randrange(9)
        if how == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        elif how == 1:
            data = data[:at] if rng.random() < 0.3 else data[:at] + data[end:]
        elif how == 2:
            data = data[:at] + rng.choice(TOKENS) + data[end:]
        elif how == 3:
            data = data[:at] + rng.choice(TOKENS) + data[at:]
        elif how == 4:
            data = data[:at] + data[at:end] * rng.randint(2, 5) + data[end:]
        elif how == 5:
            data = data[:at] + rng.randbytes(end - at) + data[end:]
        elif how == 6:
            other = rng.choice(others)
            cut = rng.randrange(len(other) + 1)
            data = data[:at] + other[cut : cut + rng.randrange(2000)] + data[end:]
        elif how == 7:
            size = rng.choice((1, 2, 4, 8))
            value = rng.choice(
                (0, 1, -1, 2 ** (8 * size - 1) - 1, -(2 ** (8 * size - 1)), rng.randrange(256))
            )
            edge = (value % 2 ** (8 * size)).to_bytes(size, rng.choice(("little", "big")))
            data = data[:at] + edge + data[at + size :]
        else:
            to = rng.randrange(len(data) + 1)
            data = data[:to] + data[at:end] + data[to:]
    return data


def cells_mutant(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Small integers and doubles are written over others; nothing moves."""
    for _ in range(rng.randint(1, 3)):
        size = rng.choice((1, 2, 4, 4, 8, 8))
        at = rng.randrange(max(1, len(data) - size))
        old = int.from_bytes(data[at : at + size], "little")
        new = rng.choice((
            0, 1, old + 1, old - 1, old ^ 1 << rng.randrange(8 * size), 2 * old, 7, 63, 64, 65, 255,
            999, 1000, 1001, 2**31 - 1, 2**31, 2**32 - 1,
            2**53, 2**53 + 1, -(2**53), 2**63 - 1, -(2**63), 0x7FF8 << 48, 0x7FF0 << 48, rng.randrange(1 << 8 * size),
        ))  # fmt: skip
        data = data[:at] + (new % (1 << 8 * size)).to_bytes(size, "little") + data[at + size :]
    return data


_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def number_mutant(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Numbers of a text become other numbers, or nothing of the kind."""
    found = list(_NUMBER.finditer(data))
    for one in sorted(rng.sample(found, min(len(found), rng.randint(1, 3))), key=lambda m: -m.start()):
        new = rng.choice(NUMBERS).encode()
        if rng.random() < 0.2:
            new = rng.choice(found)[0]
        data = data[: one.start()] + new + data[one.end() :]
    return data


def line_mutant(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Lines of a text are dropped, doubled, moved, or get each other's values."""
    lines = data.split(b"\n")
    for _ in range(rng.randint(1, 3)):
        at, to = rng.randrange(len(lines)), rng.randrange(len(lines))
        how = rng.randrange(5)
        if how == 0 and len(lines) > 1:
            del lines[at]
        elif how == 1:
            lines.insert(to, lines[at])
        elif how == 2:
            key, equals, _ = lines[at].partition(b"=")
            lines[at] = key + equals + lines[to].partition(b"=")[2]
        elif how == 3:
            key, equals, value = lines[at].partition(b"=")
            parts = value.split(b" ")
            if rng.random() < 0.5:
                parts += [rng.choice(parts)] * rng.randint(1, 3)
            elif len(parts) > 1:
                parts.pop()
            lines[at] = key + equals + b" ".join(parts)
        else:
            lines[at] = rng.choice(rng.choice(others).split(b"\n"))
    return b"\n".join(lines)


def _places(value: object, at: tuple = ()) -> Iterator[tuple]:
    """Ways to every value inside a document."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        yield (*at, key)
        yield from _places(one, (*at, key))


def _hostile_value(rng: random.Random, old: object, document: object, places: list[tuple]) -> object:
    how = rng.randrange(12)
    if how < 4:
        return _Raw(rng.choice(NUMBERS) or "0")
    if how == 4:
        return rng.choice((None, True, False, "", "0", "x", "\u0000", "a" * 5000, [], {}, [[]], {"": 0}))
    if how == 5 and isinstance(old, (int, float, str)):
        return str(old) if not isinstance(old, str) else _Raw(old if _NUMBER.fullmatch(old.encode()) else "7")
    if how == 6 and isinstance(old, list) and old:
        return old + [copy.deepcopy(rng.choice(old))] * rng.choice((1, 2, 1000))
    if how == 7 and isinstance(old, list) and old:
        return old[: rng.randrange(len(old))]
    if how == 8:
        nest: object = old
        for _ in range(rng.choice((1, 2, 60, 3000))):
            nest = [nest] if rng.random() < 0.5 else {"left_child": nest}
        return nest
    if how == 9 and isinstance(old, int):
        return old + rng.choice((-1, 1, 1 << 31, -(1 << 31), 1 << 63))
    if how == 10 and isinstance(old, list):
        return [*old[::-1]]
    return copy.deepcopy(_at(document, rng.choice(places)))


def _at(document, way):
    for key in way:
        document = document[key]
    return document


def document_mutant(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Values of a JSON document are replaced, dropped, doubled, moved and nested; keys too."""
    document = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(document))
        if not places:
            break
        way = rng.choice(places)
        if (
            rng.random() < 0.5
        ):  # short arrays and heads are where counts and names are, and they are few among the numbers
            way = min((rng.choice(places) for _ in range(4)), key=len)
        inside, key = _at(document, way[:-1]), way[-1]
        if rng.random() < 0.15:
            del inside[key]
        elif rng.random() < 0.1 and isinstance(inside, dict):
            inside[rng.choice((str(key).upper(), "", str(rng.choice(places)[-1])))] = inside.pop(key)
        else:
            inside[key] = _hostile_value(rng, inside[key], document, places)
    return _dumped(document)


_LIKELY: dict[type, tuple] = {
    bool: (True, False),
    int: (0, 1, 2, 3, 7, 100, 1 << 16, 1 << 20, 1 << 31, 1 << 40, -1),
    float: (0.0, -0.0, 0.5, 1.0, -1.0, 1e-9, 1e9, 1e30, 1e300, 1e-300),
    str: ("", "x", "card", "é", "1h", "30d", "0s", "UTC", "float", "str"),
}


def likely_mutant(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """One or two values become others of the same type, so that what a schema allows gets behind the first check."""
    packed = data[:1] not in b"{["
    decode, encode = (msgspec.msgpack.decode, msgspec.msgpack.encode) if packed else (json.loads, _dumped)
    document, other = decode(data), decode(rng.choice(others))
    for _ in range(rng.randint(1, 2)):
        places = list(itertools.islice(_places(document), 2_000))
        if not places:
            break
        way = rng.choice(places)
        inside, key = _at(document, way[:-1]), way[-1]
        old = inside[key]
        same = [
            one
            for source in (document, other)
            for place in itertools.islice(_places(source), 2_000)
            if type(one := _at(source, place)) is type(old)
        ]
        if isinstance(old, list) and old and rng.random() < 0.7:
            how = rng.randrange(4)
            at = rng.randrange(len(old))
            if how == 0:
                old.append(copy.deepcopy(old[at]))
            elif how == 1:
                del old[at]
            elif how == 2:
                rng.shuffle(old)
            else:
                old[at] = copy.deepcopy(rng.choice(same))
        elif isinstance(inside, dict) and rng.random() < 0.15:
            keys = [
                place[-1]
                for source in (document, other)
                for place in _places(source)
                if type(place[-1]) is type(key)
            ]
            inside[rng.choice(keys)] = inside.pop(key)
        else:
            inside[key] = copy.deepcopy(rng.choice(same + list(_LIKELY.get(type(old), ()))))
    return encode(document)


_PACKED = (
    None, True, False, 0, 1, -1, 127, 128, 255, 256, 2**31, -(2**31), 2**53 + 1, 2**63 - 1, 2**63, -(2**63),
    2**64 - 1, 0.0, -0.0,
    0.5, 1e-320, 3.5e38, 1e300, float("nan"), float("inf"), float("-inf"), "", "x", "\x00", "a" * 5000, "\u202e",
    "9" * 400, "nan",
    b"", b"\xff", b"x" * 300, [], {}, [[]], [None] * 300, {"": 0}, {1: 2}, {None: 1}, {b"k": 1}, {1.5: 1},
    msgspec.msgpack.Ext(5, b"x"),
)  # fmt: skip


def packed_mutant(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """The same of MessagePack, which can say more."""
    document = [msgspec.msgpack.decode(data)]
    for _ in range(rng.randint(1, 3)):
        places = list(itertools.islice(_places(document), 2_000))
        way = rng.choice(places)
        inside, key = _at(document, way[:-1]), way[-1]
        old = inside[key]
        how = rng.randrange(12)
        if how < 5:
            new = copy.deepcopy(rng.choice(_PACKED))
        elif how == 5:
            new = copy.deepcopy(_at(document, rng.choice(places)))
        elif how == 6 and isinstance(old, list) and old:
            new = old + [copy.deepcopy(rng.choice(old))] * rng.choice((1, 2, 1000))
        elif how == 7 and isinstance(old, (list, str, bytes)) and old:
            new = old[: rng.randrange(len(old))]
        elif how == 8 and isinstance(old, bytes) and old:
            new = bytes_mutant(old, rng, others)
        elif how == 9 and isinstance(old, int):
            new = max(-(2**63), min(2**64 - 1, old + rng.choice((-1, 1, 1 << 31, -(1 << 31), 1 << 62))))
        elif how == 10:
            new = old
            for _ in range(rng.choice((1, 2, 60, 500))):
                new = [new] if rng.random() < 0.5 else {"a": new}
        else:
            if isinstance(inside, dict) and rng.random() < 0.5:
                inside[rng.choice((str(key).upper(), "", 0, b"k", str(rng.choice(places)[-1])))] = inside.pop(
                    key
                )
            elif len(way) > 1:
                del inside[key]
            continue
        inside[key] = new
    return msgspec.msgpack.encode(document[0])


class _Raw(str):
    """A piece of JSON that is written as it stands."""

    __slots__ = ()


def _dumped(document: object) -> bytes:
    """As json.dumps, but of any depth, and with pieces that are no JSON."""
    out: list[str] = []
    todo = [document]  # from the end: what is pushed last is written first
    while todo:
        one = todo.pop()
        if isinstance(one, _Raw):
            out.append(one)
        elif isinstance(one, dict):
            todo.append(_Raw("}"))
            for i, (key, value) in reversed([*enumerate(one.items())]):
                todo += [value, _Raw(("," if i else "") + json.dumps(key) + ":")]
            out.append("{")
        elif isinstance(one, list):
            todo.append(_Raw("]"))
            for i, value in reversed([*enumerate(one)]):
                todo += [value, _Raw("," if i else "")]
            out.append("[")
        else:
            out.append(json.dumps(one))
    return "".join(out).encode("utf-8", "surrogatepass")


def mutant(target: Target, seeds: list[bytes], rng: random.Random) -> bytes:
    """One hostile file."""
    data = rng.choice(seeds)
    try:
        return rng.choice(target.ways)(data, rng, seeds)
    except (
        RecursionError,
        ValueError,
        TypeError,
        OverflowError,
        LookupError,
    ):  # so far from a file that a way of damaging files fails at it
        return bytes_mutant(data, rng, seeds)


def mutants(target: Target, n: int, seed: int) -> Iterator[bytes]:
    """The same n files for the same seed."""
    seeds = target.seeds()
    for i in range(n):
        yield mutant(target, seeds, random.Random(f"{target.name} {seed} {i}"))


# ---- running ---------------------------------------------------------------------------------------------------------------


def _bound_memory() -> None:
    """From here on the process may take MEMORY more than it has; what wants more gets a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bound = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _leave(target: Target, data: bytes) -> Path:
    LEFT.mkdir(parents=True, exist_ok=True)
    path = LEFT / f"{target.name}-{hashlib.sha256(data).hexdigest()[:12]}.bin"
    path.write_bytes(data)
    return path


def run_mutants(target: Target, n: int, seed: int) -> int:
    """Prints what came of them; returns how many ended as nothing may end."""
    ends = dict.fromkeys(("answered", *target.refusals().values()), 0)
    failures: dict[str, Path] = {}
    target.door(target.seeds()[0])  # what is imported and loaded once takes no part in the times
    for i, one in enumerate(target.seeds()):
        assert settle(target, one) == "answered", f"seed {i} is refused"
    _bound_memory()
    for data in mutants(target, n, seed):
        try:
            ends[settle(target, data)] += 1
        except Exception as exc:
            frames = [f for f in traceback.extract_tb(exc.__traceback__) if "/retailinfer/" in f.filename]
            where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "the test itself"
            what = f"{type(exc).__name__} at {where}"
            if what not in failures:
                failures[what] = _leave(target, data)
                sys.stderr.write(f"{what}: {str(exc)[:300]}\n  {failures[what]}\n")
    said = {"target": target.name, "seed": seed, "mutants": n, **ends, "failures": sorted(failures)}
    _say(json.dumps(said))
    return len(failures)


def run_guided(target: Target, seconds: float, seed: int, folder: Path) -> int:
    """Until the time is up, by coverage of the parsers; atheris ends the process. A finding is left in `folder`."""
    import atheris

    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=list(target.modules)):  # nothing of them is imported before
        seeds = target.seeds()
        target.door(seeds[0])
        for data in seeds:
            settle(target, data)
    for i, data in enumerate(seeds):
        (corpus / f"seed-{i}").write_bytes(data)

    def one(data: bytes) -> None:
        settle(target, data)

    def mutate(data: bytes, size: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.5:
            return atheris.Mutate(data, size)
        try:
            return rng.choice(target.ways)(bytes(data), rng, seeds)[:size]
        except Exception:
            return mutant(target, seeds, rng)[:size]

    options = [
        f"-max_total_time={int(seconds)}",
        f"-seed={seed}",
        f"-artifact_prefix={folder}/",
        "-rss_limit_mb=3000",
        "-print_final_stats=1",
        "-timeout=20",
    ]
    atheris.Setup(
        [sys.argv[0], *options, f"-max_len={4 * max(map(len, seeds))}", str(corpus)],
        one,
        custom_mutator=mutate,
    )
    atheris.Fuzz()
    return 0


def main(targets: Mapping[str, Target]) -> int:
    """Command line of a file of targets."""
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=list(targets))
    parser.add_argument("--mutants", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None, help="of the corpus and of findings")
    parser.add_argument("--replay", type=Path)
    given = parser.parse_args()
    target = targets[given.target]
    # As the tests have it: NumPy's, of a number that does not fit.
    warnings.simplefilter("error", RuntimeWarning)
    if given.replay:
        _say(settle(target, given.replay.read_bytes()))
        return 0
    if given.seconds:
        return run_guided(target, given.seconds, given.seed, given.folder or LEFT / target.name)
    return 1 if run_mutants(target, given.mutants or 500, given.seed) else 0
