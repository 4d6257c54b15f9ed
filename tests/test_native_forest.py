"""The tree kernels as plain C: under sanitisers, under a fuzzer, on arm64, and the same bits from every compiler.

Rules:
  * tests/native makes forests and rows of every kind from a seed, spoils some, runs every kernel of every instruction set of
    this machine on them, and compares with the definition; then the reasons of each forest, in every form. Here it runs for
    seconds, in `make soak` as long as one likes.
  * Of sums every bit is compared everywhere. Of last steps too where the C library is one and the same; arm64 has its own
    `exp` and `log`, which may differ in a last bit: there one of 100 may, by what a last bit does to a probability.
"""

from __future__ import annotations

import re
import sys

import pytest
from native_programs import ARM64, FOREST_FUZZ, FUZZED, LINUX_X86, SANITISED, forest_program, run, tool

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux", reason="platform: the C programs of tests/native are built on Linux"
    ),
]
CASES = 250
SEED = 20240


def counted(text):
    """(level, kernel) -> forests it ran, as the program reports them."""
    found = re.findall(r"^ran (\S+) (\S+) (\d+)$", text, flags=re.MULTILINE)
    return {(level, kernel): int(n) for level, kernel, n in found}


def compared(text):
    """What a check of a corpus says: sums, of them other bits, last steps, of them other bits, how far apart."""
    sums, last = (
        re.search(r"^sums (\d+), other bits (\d+)$", text, re.MULTILINE),
        re.search(r"^last steps (\d+), other bits (\d+), at most (\S+) apart$", text, re.MULTILINE),
    )
    return int(sums[1]), int(sums[2]), int(last[1]), int(last[2]), float(last[3])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Cases, and the answers of the build that ships: gcc's -O3, on the kernels of this machine."""
    path = tmp_path_factory.mktemp("corpus") / "forests.bin"
    done = run([forest_program("forest-shipped"), "write", path, SEED, CASES])
    assert done.returncode == 0, done.stderr
    return path


def test_no_kernel_reads_or_writes_beside_its_memory_or_does_what_c_leaves_open():
    """Address and undefined-behaviour sanitisers over every kernel of every level, on whole forests and on spoiled ones."""
    program = forest_program("forest-sanitised", flags=SANITISED)
    done = run([program, "run", SEED, CASES, 0])
    assert done.returncode == 0, done.stderr[-4000:]
    ran = counted(done.stdout)
    assert min(ran.values()) >= 20, f"a kernel was hardly run: {ran}"
    refused = int(re.search(r"refused (\d+)", done.stdout)[1])
    assert CASES // 20 < refused < CASES // 2, "spoiled forests are part of it, and no more than that"


@pytest.mark.parametrize(
    ("name", "compiler", "level"), [("forest-gcc-o0", "gcc", "-O0"), ("forest-clang-o3", "clang", "-O3")]
)
def test_every_compiler_gives_the_same_bits(corpus, name, compiler, level):
    """Optimised or not, by gcc or clang: sums and last steps are the same to the bit."""
    done = run([forest_program(name, compiler, (level,)), "check", corpus])
    assert done.returncode == 0, done.stdout + done.stderr
    n_sums, other_sums, n_last, other_last, _ = compared(done.stdout)
    assert n_sums == n_last > 5_000
    assert (other_sums, other_last) == (0, 0)


@pytest.mark.skipif(not LINUX_X86, reason="platform: arm64 is compared with an x86-64 machine")
def test_arm64_gives_the_same_bits(corpus):
    """Compiled for arm64 and run by qemu: the sums have the bits that the kernels of this machine gave, AVX-512's too."""
    done = run([tool("qemu-aarch64"), forest_program(**ARM64), "check", corpus])
    assert done.returncode == 0, done.stdout + done.stderr
    n_sums, other_sums, n_last, other_last, apart = compared(done.stdout)
    assert n_sums == n_last > 5_000
    assert other_sums == 0
    assert other_last <= n_last // 100
    assert apart <= 1e-6


def test_other_bits_in_a_corpus_are_seen(corpus, tmp_path):
    """One bit of one sum changed in the corpus is counted and fails the check; so does a corpus that is cut short."""
    data = bytearray(corpus.read_bytes())
    at = 8
    while True:  # to the first case that was not refused
        size = int.from_bytes(data[at : at + 4], "little")
        n = at + 4 + size + 12
        if int.from_bytes(data[n : n + 8], "little"):
            break
        at = n + 8
    data[n + 8] ^= 1
    spoiled = tmp_path / "spoiled.bin"
    spoiled.write_bytes(data)
    done = run([forest_program("forest-shipped"), "check", spoiled])
    assert done.returncode == 1
    assert compared(done.stdout)[1] == 1
    spoiled.write_bytes(data[: len(data) // 2])
    assert run([forest_program("forest-shipped"), "check", spoiled]).returncode == 2


@pytest.mark.skipif(not LINUX_X86, reason="platform: the fuzzer's runtime is looked for on x86-64 Linux")
def test_fuzzer_finds_nothing(tmp_path):
    """libFuzzer steers the bytes of cases by the branches that they reach, under both sanitisers."""
    program = forest_program("forest-fuzzed", "clang", FUZZED, main=FOREST_FUZZ)
    done = run(
        [
            program,
            "-runs=250",
            f"-seed={SEED}",
            "-max_len=256",
            f"-artifact_prefix={tmp_path}/",
            "-timeout=60",
        ]
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done 250 runs" in done.stderr
