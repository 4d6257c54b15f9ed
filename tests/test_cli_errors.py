"""The command line on wrong input: one readable line on stderr, no traceback, and the right exit code.

0 good, 1 refused or broken, 2 wrong arguments; with `--json` the reason also stands on stdout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_releases import card_table, pack_payments, payment_spec

from retailinfer.cli.main import main

pytestmark = pytest.mark.requires("onnx", "pyarrow")


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """A good release; tests damage copies of it."""
    return pack_payments(tmp_path_factory.mktemp("packed"))


@pytest.fixture
def release(packed, tmp_path) -> Path:
    """A copy to damage."""
    import shutil

    return Path(shutil.copytree(packed, tmp_path / "release"))


@pytest.fixture
def fails(capsys):
    """Run a command that must fail with exit code 1; returns the one line that it says."""

    def call(*arguments: object) -> str:
        code = main([str(a) for a in arguments])
        _, err = capsys.readouterr()
        assert code == 1
        assert "Traceback" not in err
        last = err.splitlines()[-1]
        assert last.startswith("retailinfer: error: ")
        return last.removeprefix("retailinfer: error: ")

    return call


COMMANDS = ["verify", "inspect", "bench"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_directory_that_is_no_release_is_said(fails, tmp_path, command):
    """The path and what is missing are named."""
    assert "No such file or directory" in fails(command, tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "has no manifest.json" in fails(command, tmp_path / "empty")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "file", ["model.onnx", "features.json", "golden.msgpack", "policy.json", "manifest.json"]
)
def test_a_changed_byte_is_found(fails, release, command, file):
    """One flipped bit in any file is an error that names the file."""
    data = bytearray((release / file).read_bytes())
    data[len(data) // 2] ^= 1
    (release / file).write_bytes(data)
    assert file in fails(command, release)


@pytest.mark.parametrize("file", ["model.onnx", "golden.msgpack", "contract.json"])
def test_a_cut_or_missing_file_is_found(fails, release, file):
    """A cut file is named with both sizes, a missing one as missing."""
    whole = (release / file).read_bytes()
    (release / file).write_bytes(whole[:-1])
    assert f"Expected {len(whole)} bytes, got {len(whole) - 1}" in fails("verify", release)
    (release / file).unlink()
    assert file in fails("verify", release)


def test_a_file_that_is_not_listed_is_found(fails, release):
    """A release is never added to."""
    (release / "notes.txt").write_text("hello")
    assert "notes.txt" in fails("verify", release)


def test_strict_paths_refuses_links(fails, release, tmp_path):
    """`--strict-paths` reaches the reader of the directory."""
    (release / "model.onnx").rename(tmp_path / "elsewhere.onnx")
    (release / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    assert main(["verify", str(release), "--quiet"]) == 0
    assert "a link" in fails("verify", release, "--strict-paths")


def test_verify_json_keeps_what_passed_before_the_failure(release, capsys):
    """Machines see which checks passed, and the error with its type."""
    data = bytearray((release / "model.onnx").read_bytes())
    data[10] ^= 1
    (release / "model.onnx").write_bytes(data)
    assert main(["verify", str(release), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert found["error"]["type"] == "IntegrityError"
    assert "model.onnx" in found["error"]["message"]


def test_other_commands_put_errors_into_json_too(tmp_path, capsys):
    """stdout is one JSON value whether it went well or not."""
    assert main(["bench", str(tmp_path / "nothing"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found == {"ok": False, "error": found["error"]}
    assert found["error"]["type"] == "BundleError"


# ---- stores and requests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("card", "Expected --store NAME=FILE:KEY"),
        ("card=cards.parquet", "Expected --store NAME=FILE:KEY"),
        ("=cards.parquet:card_id", "Expected --store NAME=FILE:KEY"),
        ("card=FOLDER/absent.parquet:card_id", "absent.parquet"),
        ("card=FOLDER/notes.txt:card_id", "Expected a .parquet, .arrow or .feather file"),
        ("card=FOLDER/broken.parquet:card_id", "broken.parquet"),
        ("card=FOLDER/cards.parquet:number", "cannot be the table `card`"),
        ("account=FOLDER/cards.parquet:card_id", "--store card=FILE:KEY"),
    ],
)
def test_a_wrong_store_is_said(fails, packed, tmp_path, given, said):
    """Each way to get `--store` wrong has its own message."""
    import pyarrow.parquet as pq

    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "broken.parquet").write_text("hello")
    pq.write_table(card_table(), tmp_path / "cards.parquet")
    assert said in fails("verify", packed, "--store", given.replace("FOLDER", str(tmp_path)))


def test_a_table_without_a_column_that_features_read_is_said(fails, packed, tmp_path):
    """A store that does not fit is found by `verify`, not by the first request."""
    import pyarrow.parquet as pq

    pq.write_table(card_table().rename_columns(["card_id", "other"]), tmp_path / "cards.parquet")
    line = fails("verify", packed, "--store", f"card={tmp_path}/cards.parquet:card_id")
    assert "lacks the column `mean_amount`" in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no request"),
        ("{}\n", "line 1"),
        ('{"card_id": "c", "channel": "web", "amount": 1, "at": 1}\nnot json\n', "line 2"),
        ('{"card_id": 7, "channel": "web", "amount": 1, "at": 1}\n', "$.card_id"),
    ],
)
def test_a_request_that_is_refused_is_named_by_its_line(fails, packed, tmp_path, text, said):
    """A file of requests is checked before anything is timed."""
    path = tmp_path / "requests.jsonl"
    path.write_text(text)
    assert said in fails("bench", packed, "--requests", path)


@pytest.mark.parametrize(
    "limit", ["p99", "p99_ms", "p99_ms=", "p98_ms=1", "p99_s=1", "p99_ms=-1", "p99_ms=nan", "=1"]
)
def test_a_limit_that_means_nothing_is_said(fails, packed, limit):
    """A misspelt `--fail-if` is an error, never a limit that nothing exceeds."""
    assert "Expected --fail-if NAME=LIMIT" in fails("bench", packed, "--fail-if", limit)


def test_a_limit_on_a_stage_that_is_not_there_is_said(fails, packed):
    """The stages that are there are listed."""
    assert "it has decode, resolve" in fails("bench", packed, "--n", 5, "--fail-if", "think.p50_us=1")


def test_a_contract_without_promises_is_no_limit(fails, tmp_path):
    """`--fail-if contract` must not pass because the contract says nothing."""
    import retailinfer as ri

    bare = pack_payments(tmp_path, contract=ri.Contract())
    assert "promises no latency" in fails("bench", bare, "--fail-if", "contract")


# ---- pack ------------------------------------------------------------------------------------------------------------


def pack_with(tmp_path: Path, **files: str) -> list[str]:
    """Arguments of `pack` with some files written by the test; the model is a good one."""
    from small_releases import logistic

    (tmp_path / "model.onnx").write_bytes(logistic(len(payment_spec().names)))
    (tmp_path / "features.json").write_bytes(payment_spec().to_json())
    arguments = ["pack", "payments", "--out", str(tmp_path / "out")]
    given = {"model": "model.onnx", "features": "features.json"} | files
    for option, name in given.items():
        arguments += [f"--{option}", str(tmp_path / name)]
    return arguments


@pytest.mark.parametrize(
    ("option", "name", "content", "said"),
    [
        ("model", "absent.onnx", None, "cannot read the model"),
        ("model", "other.onnx", "not a model", "not an ONNX file"),
        ("model", "model.pkl", "x", "looks like a pickle"),
        ("features", "absent.json", None, "absent.json"),
        ("features", "other.json", "{]", "not a feature spec"),
        ("policy", "absent.toml", None, "cannot read"),
        ("policy", "policy.toml", "bands = [", "neither JSON nor TOML"),
        ("policy", "policy.json", "[]", "Expected an object"),
        ("policy", "policy.json", '{"bands": [["a", 1], ["b", 0]]}', "ascending"),
        ("contract", "contract.json", '{"p99": 2}', "unknown field"),
        ("contract", "contract.json", '{"max_rows": 0}', "max_rows"),
        ("info", "info.toml", 'colour = "red"', "unknown field"),
        ("golden", "golden.csv", "a,b", "Expected a .parquet"),
        ("golden", "golden.parquet", "hello", "cannot read"),
    ],
)
def test_pack_names_the_file_that_is_wrong(fails, tmp_path, option, name, content, said):
    """A file that cannot be used ends it with its reason, and nothing is written."""
    if content is not None:
        (tmp_path / name).write_text(content)
    assert said in fails(*pack_with(tmp_path, **{option: name}))
    assert not (tmp_path / "out").exists()


def test_pack_wants_a_role_for_each_of_several_models(fails, tmp_path):
    """Two models without names, or with the same one, cannot be told apart."""
    arguments = pack_with(tmp_path)
    assert "ROLE=FILE" in fails(*arguments, "--model", tmp_path / "model.onnx")
    role = f"a={tmp_path / 'model.onnx'}"
    assert "ROLE=FILE" in fails("pack", "x", "--out", tmp_path / "out", "--model", role, "--model", role)


def test_pack_takes_golden_rows_only_with_features(fails, tmp_path):
    """Rows of a table mean nothing to a release of arrays."""
    arguments = [one for one in pack_with(tmp_path) if "features" not in one]
    assert "no --features is given" in fails(*arguments, "--golden", tmp_path / "golden.parquet")


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["verify"],
        ["verify", "a", "b"],
        ["bench", "a", "--n", "0"],
        ["bench", "a", "--n", "many"],
        ["pack", "name"],
        ["pack", "name", "--out", "o", "--model", "m", "--quantize", "int4"],
        ["--frobnicate"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_exit_with_2(arguments, capsys):
    """Usage errors are told apart from everything else."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: retailinfer" in capsys.readouterr().err


def test_no_command_shows_the_help(capsys):
    """Somebody who types just `retailinfer` sees what there is."""
    assert main([]) == 2
    out = capsys.readouterr().out
    for command in ("demo", "pack", "verify", "inspect", "bench"):
        assert f"retailinfer {command}" in out


def test_version_is_told(capsys):
    """`--version` names the package and its version."""
    import retailinfer

    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip() == f"retailinfer {retailinfer.__version__}"


@pytest.mark.parametrize("command", ["demo", "pack", "verify", "inspect", "bench"])
def test_every_command_explains_itself(command, capsys):
    """`--help` says what it does and every option has a text."""
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0
    assert len(out.splitlines()) > 8
    assert "--quiet" in out


# ---- what nobody expected --------------------------------------------------------------------------------------------


def test_an_unexpected_exception_is_one_line(monkeypatch, capsys):
    """A bug of ours shows its type and how to see more; with --traceback it comes through."""
    from retailinfer.cli import verify

    def broken(*_: object) -> int:
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr(verify, "run", broken)
    assert main(["verify", "x"]) == 1
    err = capsys.readouterr().err
    assert err.splitlines() == [
        "retailinfer: error: internal error, please report it: ZeroDivisionError: a b (--traceback shows where)"
    ]
    with pytest.raises(ZeroDivisionError):
        main(["verify", "x", "--traceback"])


def test_a_keyboard_interrupt_is_no_traceback(monkeypatch, capsys):
    """Ctrl-C ends a command quietly, with the shell's own exit code."""
    from retailinfer.cli import verify

    def stopped(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "run", stopped)
    assert main(["verify", "x"]) == 130
    assert capsys.readouterr().err == "retailinfer: stopped\n"


def test_a_reader_that_has_seen_enough_is_no_error(packed):
    """`retailinfer inspect ... | head` ends without a traceback."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "retailinfer", "inspect", str(packed)],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 141


def test_demo_without_its_packages_says_what_to_install(monkeypatch, fails):
    """The extra is named before anything is imported."""
    from importlib import util

    real = util.find_spec
    monkeypatch.setattr(
        "retailinfer.cli.extras.find_spec", lambda name: None if name == "pyarrow" else real(name)
    )
    assert "pip install 'retailinfer[demo]'" in fails("demo")
