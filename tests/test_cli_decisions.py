"""`retailinfer decisions`: what it shows of a folder, for people and machines, and how it erases."""

from __future__ import annotations

import json

import pytest
from decisions import answered, decision, failed, log_of

from retailinfer.cli.main import main


@pytest.fixture
def folder(tmp_path):
    """The folder of a log with 20 decisions and two failures."""
    log = log_of(tmp_path / "decisions")
    for i in range(20):
        log.on_event(answered(i, answer=decision(i, action="approve" if i < 15 else "review")))
    log.on_event(failed(1))
    log.on_event(failed(2))
    log.close()
    return tmp_path / "decisions"


@pytest.fixture
def run(capsys):
    """Run the command; (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["decisions", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_it_shows_what_is_there(folder, run):
    """Rows, span, declaration, and counts by release, rung and outcome."""
    code, out, _ = run(folder)
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith(
        "22 row(s) from 2026-09-21 14:13:20 UTC to 2026-09-21 14:13:39 UTC; 1 file(s), "
    )
    assert lines[1] == (
        "declared: keys of card (card_id); fields amount, channel; sample 1; kept until deleted"
    )
    assert [line.split() for line in lines[3:]] == [
        ["rows", "kind", "release", "rung", "outcome"],
        ["15", "decision", "fraud:41", "0", "approve"],
        ["5", "decision", "fraud:41", "0", "review"],
        ["2", "failed", "fraud:41", "DeadlineExceededError"],
    ]


def test_it_shows_the_same_to_machines(folder, run):
    """One JSON value."""
    code, out, _ = run(folder, "--json")
    shown = json.loads(out)
    assert (code, shown["rows"], len(shown["files"]), len(shown["declared"])) == (0, 22, 1, 1)
    assert shown["counts"][0] == {
        "kind": "decision", "release": "fraud:41", "rung": 0, "outcome": "approve", "rows": 15,
    }  # fmt: skip


def test_rows_of_a_span_and_of_an_entity(folder, run):
    """As JSON lines."""
    _, out, _ = run(folder, "--rows", "--since", "2026-09-21T14:13:25", "--until", "2026-09-21T14:13:30Z")
    assert [json.loads(line)["id"] for line in out.splitlines()] == [f"order-{i}" for i in range(5, 10)]
    _, out, _ = run(folder, "--rows", "--of", "card=c-7")
    assert [json.loads(line)["id"] for line in out.splitlines()] == ["order-7", "order-17"]


def test_erasing(folder, run):
    """How much there was; then there is none."""
    code, out, err = run(folder, "--erase", "card=c-7")
    assert (code, out) == (0, "2 row(s) erased from 1 file(s)\n")
    assert "seal" in err
    code, out, _ = run(folder, "--erase", "card=c-7", "--json", "--quiet")
    assert json.loads(out) == {"ok": True, "erased": {"rows": 0, "files": 0, "not_reached": []}}
    _, out, _ = run(folder, "--rows")
    assert len(out.splitlines()) == 20


def test_hashed_keys_need_the_secret(tmp_path, run):
    """In a file, so that it is in nobody's history."""
    log = log_of(tmp_path / "decisions", hash_key="0123456789abcdef0123")
    log.on_event(answered(7))
    log.close()
    secret = tmp_path / "secret"
    secret.write_text("0123456789abcdef0123\n")
    _, out, _ = run(tmp_path / "decisions", "--rows", "--of", "card=c-7", "--hash-key", secret)
    assert json.loads(out)["id"] == "order-7"
    code, _, err = run(tmp_path / "decisions", "--erase", "card=c-7")
    assert code == 1
    assert "hash key" in err
    code, out, _ = run(tmp_path / "decisions", "--erase", "card=c-7", "--hash-key", secret)
    assert (code, out) == (0, "1 row(s) erased from 1 file(s)\n")


@pytest.mark.parametrize("given", [None, b"another key of 16 or more"])
def test_rows_of_an_entity_are_not_said_to_be_none_for_want_of_the_secret(tmp_path, run, given):
    """Who asks what is kept of somebody gets an error, not an empty answer."""
    log = log_of(tmp_path / "decisions", hash_key="0123456789abcdef0123")
    log.on_event(answered(7))
    log.close()
    more: list[object] = []
    if given is not None:
        (tmp_path / "other").write_bytes(given)
        more = ["--hash-key", tmp_path / "other"]
    code, out, err = run(tmp_path / "decisions", "--rows", "--of", "card=c-7", *more)
    assert (code, out) == (1, "")
    assert "hash" in err


@pytest.mark.parametrize("secret", [b"\n 14 random bytes \t", b"\x0b" * 40])
def test_a_secret_of_random_bytes_is_taken_as_it_stands(tmp_path, run, secret):
    """`secrets.token_bytes` may begin or end with what looks like a blank."""
    log = log_of(tmp_path / "decisions", hash_key=secret)
    log.on_event(answered(7))
    log.close()
    (tmp_path / "secret").write_bytes(secret)
    code, out, _ = run(tmp_path / "decisions", "--erase", "card=c-7", "--hash-key", tmp_path / "secret")
    assert (code, out) == (0, "1 row(s) erased from 1 file(s)\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "Expected the folder of a decision log"),
        (["FOLDER", "--since", "yesterday"], "Expected a moment for --since"),
        (["FOLDER", "--erase", "c-7"], "Expected --erase ENTITY=KEY"),
        (["FOLDER", "--of", "customer=c-7"], "Expected an entity that the log declares"),
        (["FOLDER", "--erase", "customer=c-7"], "Expected an entity of the log"),
        (["FOLDER", "--of", "card=c", "--hash-key", "FOLDER/none"], "No such file"),
    ],
)
def test_what_means_nothing_is_one_line(folder, run, arguments, said):
    """On stderr, with exit code 1."""
    code, out, err = run(*[one.replace("FOLDER", str(folder)) for one in arguments])
    assert (code, out) == (1, "")
    assert said in err.splitlines()[-1]


def test_an_empty_folder(tmp_path, run):
    """Has no rows."""
    code, out, _ = run(tmp_path)
    assert (code, out) == (0, "0 row(s); 0 file(s), 0 bytes\n")
