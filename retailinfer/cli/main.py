"""Arguments, and what becomes of errors: `retailinfer COMMAND ...`.

Rules: the exit codes of cli/__init__.py. An error is one line that says what to do; `--traceback` shows where it came from,
for a bug report.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import retailinfer
from retailinfer.cli import registry as registry_commands
from retailinfer.cli.console import Console
from retailinfer.cli.tables import STORE_HELP
from retailinfer.cli.trusting import PASSWORD_VARIABLE, add_trust
from retailinfer.errors import RetailInferError

__all__ = ["main"]

DESCRIPTION = """\
Scores payments and ranks products inside your own Python process, from request bytes to decision.

A release is a directory with models, features, thresholds and golden rows (inputs with known answers).
  retailinfer demo               see it work on real purchases and generated payments
  retailinfer pack ...           make a release out of a model file and a feature spec
  retailinfer repolicy RELEASE   the same release with other thresholds
  retailinfer verify RELEASE     is it whole, and does it answer here as it did where it was packed?
  retailinfer inspect RELEASE    what is in it, and what it needs
  retailinfer bench RELEASE      how fast is it on this machine?
  retailinfer diff A B           what changed, and what does it do to the golden decisions?
  retailinfer check RELEASE      may it answer? against the one that does, on your rows
  retailinfer keygen ...         make a key that signs, and name it in a trust file
  retailinfer sign RELEASE       put a signature beside a release
  retailinfer revoke ...         say which releases and keys count no more
  retailinfer rotate ...         lead hosts to the next trust file
  retailinfer follow ...         what would a process on this host answer with?
  retailinfer decisions FOLDER   what was decided, from a decision log; erase a customer from it

A registry keeps releases, and which of them answers: publish, approve, promote, rollback, override, history.
"""

EPILOG = "`retailinfer COMMAND --help` explains a command. Exit code 0: good; 1: refused or broken; 2: wrong arguments."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Never raises for what a user can cause."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    try:
        home = "registry" if options.command in registry_commands.COMMANDS else options.command
        module = import_module(f"retailinfer.cli.{home}")
        code: int = module.run(options, Console(as_json=options.json, quiet=options.quiet))
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as exc:  # a user sees one line, whatever went wrong
        if options.traceback:
            raise
        return _report(exc, options)
    return code


def _report(exc: Exception, options: argparse.Namespace) -> int:
    text = " ".join(str(exc).split())
    if isinstance(exc, OSError):
        text = f"{exc.strerror or exc}" + (f": {exc.filename}" if exc.filename else "")
    elif not isinstance(exc, RetailInferError):
        text = f"internal error, please report it: {type(exc).__name__}: {text} (--traceback shows where)"
    if options.json:
        Console(as_json=True).emit({"ok": False, "error": {"type": type(exc).__name__, "message": text}})
    return _fail(f"error: {text}", 1)


def _fail(text: str, code: int) -> int:
    print(f"retailinfer: {text}", file=sys.stderr)
    return code


# ---- arguments -------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="retailinfer",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"retailinfer {retailinfer.__version__}")
    parser.set_defaults(json=False, quiet=False, traceback=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, add in (
        ("demo", _demo),
        ("pack", _pack),
        ("repolicy", _repolicy),
        ("verify", _verify),
        ("inspect", _inspect),
        ("bench", _bench),
        ("diff", _diff),
        ("check", _check),
        ("keygen", _keygen),
        ("sign", _sign),
        ("revoke", _revoke),
        ("rotate", _rotate),
        ("follow", _follow),
        ("decisions", _decisions),
    ):
        add(_command(commands, name, json=name != "demo"))
    for name in registry_commands.COMMANDS:
        registry_commands.add_arguments(_command(commands, name, json=True), name)
    return parser


_ABOUT = {
    "demo": (
        "see real fraud and recommendation models answer in this process",
        (
            "Generates card payments and reads 1.47 million grocery purchases, trains a model on each, packs both as "
            "releases, replays held-out requests as JSON bytes and writes a report with charts. About two minutes on two "
            "cores; needs `pip install 'retailinfer[demo]'`. Exit code 1 when one of its promises is not kept."
        ),
    ),
    "pack": (
        "make a release out of model files",
        (
            "Checks the model and the features against each other, quantises if asked, records golden rows with their "
            "answers, and writes a directory that `Scorer.load` and `Ranker.load` take. A model file is ONNX, or what "
            "LightGBM, XGBoost or CatBoost wrote; fitted models are packed from Python, with "
            "`retailinfer.pack(name, model=model, ...)`. "
            "Needs `pip install 'retailinfer[pack]'`."
        ),
    ),
    "repolicy": (
        "make a release with another policy, and nothing else new",
        (
            "Takes models, features and golden rows of a release as they are, and writes a release with other thresholds, "
            "segments or reasons, to be signed, checked and promoted like any other one. `check --against` the base verifies "
            "that nothing else is new."
        ),
    ),
    "verify": (
        "check that a release is whole and answers as recorded",
        (
            "Checks the manifest and the SHA-256 of every file, opens the models, checks that models, features and policy "
            "fit each other, computes the golden rows again and compares tensors, scores and actions. This is what loading "
            "does before a release may answer. Exit code 1 with the reason when anything differs."
        ),
    ),
    "inspect": (
        "show what is in a release",
        (
            "Shows the manifest, request fields, columns, models, thresholds, contract, the tables that the features read, "
            "sizes, and what running the models costs on this machine."
        ),
    ),
    "bench": (
        "time a release on this machine",
        (
            "Times whole calls, JSON bytes in and JSON bytes out, each stage, and beside them a bare Python "
            "`InferenceSession.run` on rows that are ready: in alternating rounds, with rotating inputs, after comparing "
            "the answers. Without --requests it makes requests out of the golden rows, and without --store it makes the "
            "tables out of them too (small, so look-ups are faster than yours)."
        ),
    ),
    "diff": (
        "show what changed between two releases",
        (
            "Compares models, request, features, tables, windows, policy, contract and fallback, and has both releases answer "
            "the golden rows of both: which scores and decisions are others. Exit code 0 whatever is different."
        ),
    ),
    "check": (
        "look at a release before it answers",
        (
            "Schema, data, scores, rankings, seasons, decisions and false positives by cohort, beside the release that "
            "answers today; latency and memory on this machine against the contract. Writes the report that "
            "`retailinfer approve` asks for. Exit code 1 when something failed that --allow does not name."
        ),
    ),
    "keygen": (
        "make a key that signs",
        (
            "Writes a new private key (Ed25519, PEM) that only its owner may read, and names the public one in a trust file, "
            "which hosts get with their configuration. Needs `pip install 'retailinfer[sign]'`."
        ),
    ),
    "sign": (
        "sign a release",
        (
            "Reads and verifies a release, and writes manifest.sig beside it. Where one is there, the signature is added to "
            "what that says, so that several people can sign one after the other. Needs `pip install 'retailinfer[sign]'`."
        ),
    ),
    "revoke": (
        "say which releases and keys count no more",
        (
            "Writes the next list of revocations, which takes over what the one before held. Hosts read it beside their trust "
            "file. Needs `pip install 'retailinfer[sign]'`."
        ),
    ),
    "rotate": (
        "lead hosts to the next trust file",
        (
            "Signs a trust file of the next epoch with keys of the role `trust`, and writes it beside the one of the hosts, "
            "as trust-2.sig, trust-3.sig and so on: they follow from one to the next. Needs `pip install 'retailinfer[sign]'`."
        ),
    ),
    "follow": (
        "show what a host that follows a registry would answer with",
        (
            "Looks at a registry and at what this host has kept, as a process does that starts: which pointer is in force, "
            "what is kept, whether somebody went back here, and which release would answer. Nothing is loaded or written. "
            "Exit code 1 when nothing would answer."
        ),
    ),
    "decisions": (
        "show a decision log, or erase an entity from it",
        (
            "Counts the rows in the folder of a decision log by release, rung and outcome, prints them as JSON lines, or "
            "takes one entity's rows out, while processes go on writing. Parquet needs `pip install 'retailinfer[arrow]'`. "
            "Exit code 1 when something could not be reached."
        ),
    ),
}


def _command(commands: Any, name: str, *, json: bool) -> argparse.ArgumentParser:
    short, long = (_ABOUT | registry_commands.ABOUT)[name]
    parser: argparse.ArgumentParser = commands.add_parser(name, help=short, description=long)
    if json:
        parser.add_argument("--json", action="store_true", help="one JSON value on stdout instead of text")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--traceback", action="store_true", help=argparse.SUPPRESS)
    return parser


def _release(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("release", metavar="RELEASE", help="directory of the release")
    parser.add_argument("--store", action="append", default=[], metavar="NAME=FILE:KEY", help=STORE_HELP)


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        default="build/demo",
        metavar="DIR",
        help="where releases, caches and the report go (default: %(default)s)",
    )
    parser.add_argument("--short", action="store_true", help="fewer days and weeks: quicker, less accurate")


def _repolicy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("release", metavar="RELEASE", help="directory of the release that it is based on")
    parser.add_argument("--policy", required=True, metavar="FILE", help="JSON or TOML, as `pack` takes it")
    parser.add_argument(
        "--version", dest="new_version", required=True, metavar="VERSION", help="of the new release"
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="directory to write; it appears whole or not at all"
    )
    parser.add_argument("--info", metavar="FILE", help="JSON or TOML: owner, hypothesis, success, ends, ...")
    add_trust(parser)


def _pack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", help="name of the release: small letters, digits, `.`, `_`, `-`"
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="directory to write; it appears whole or not at all"
    )
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="[ROLE=]FILE",
        help="a model file, or models:/NAME@ALIAS of the MLflow at MLFLOW_TRACKING_URI; several models run in the order "
        "given, each with a role: --model tower=a.onnx --model ranker=b.onnx",
    )
    parser.add_argument(
        "--features",
        metavar="FILE",
        help="features.json, as FeatureSpec.to_json() of a fitted spec writes it; without it the release takes arrays",
    )
    parser.add_argument(
        "--policy", metavar="FILE", help='JSON or TOML: bands = [["approve", 0.0], ["review", 0.6]]'
    )
    parser.add_argument(
        "--contract", metavar="FILE", help="JSON or TOML: max_rows, batch_sizes, deadline_ms, p95_ms, ladder"
    )
    parser.add_argument(
        "--fallback",
        metavar="FILE",
        help="JSON or TOML: score, action, rules, popular, for the ladder's static rung",
    )
    parser.add_argument(
        "--golden",
        metavar="FILE",
        help="Parquet or Arrow file with request fields and stored columns (`card.n_30d`); at most 64 rows are kept. "
        "Without it rows are drawn from what the spec knows",
    )
    parser.add_argument(
        "--calibration", metavar="FILE", help="rows that fix the ranges of int8 (default: golden rows)"
    )
    parser.add_argument(
        "--score", default="auto", metavar="WHICH", help='"output", "output[class]", "role.output[1]"'
    )
    parser.add_argument(
        "--task", choices=["classification", "regression", "ranking"], help="default: seen in the model"
    )
    parser.add_argument(
        "--quantize",
        choices=["none", "dynamic", "static", "auto"],
        default="none",
        help="int8; `auto` keeps it where it is faster on the contract's batch sizes and answers alike "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--engine",
        choices=["auto", "onnx", "trees"],
        default="auto",
        help="`auto` runs tree ensembles in native kernels where they have an exact form (default: %(default)s)",
    )
    parser.add_argument(
        "--tolerance", type=float, metavar="X", help="largest score difference that int8 may make"
    )
    parser.add_argument(
        "--redact", action="append", default=[], metavar="FIELD", help="replace a field in golden rows"
    )
    parser.add_argument(
        "--names",
        choices=["match", "ignore"],
        default="match",
        help="`match` compares the model's feature names with the spec's, in order (default: %(default)s)",
    )
    parser.add_argument(
        "--info", metavar="FILE", help="JSON or TOML: owner, description, version, dataset, metrics ..."
    )


def _verify(parser: argparse.ArgumentParser) -> None:
    _release(parser)
    add_trust(parser)
    parser.add_argument(
        "--model-signing",
        metavar="KEY.pub",
        help="also check model.sig, the OpenSSF's format, by this public key (PEM, P-256 to P-521)",
    )
    parser.add_argument(
        "--strict-paths", action="store_true", help="also refuse links and files that others may write"
    )


def _inspect(parser: argparse.ArgumentParser) -> None:
    _release(parser)
    add_trust(parser)


def _keygen(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of the key in trust files: ci, lead, ops-2026")
    parser.add_argument(
        "--out", required=True, metavar="KEY.pem", help="where the private key goes; must not be there"
    )
    parser.add_argument("--who", metavar="TEXT", help="who holds it, for people")
    parser.add_argument(
        "--expires", metavar="MOMENT", help="after which it signs nothing: 2027-12-31T00:00:00Z"
    )
    parser.add_argument(
        "--trust", metavar="FILE", help="name the key in this trust file, which is made where it is missing"
    )
    parser.add_argument(
        "--role",
        action="append",
        default=[],
        choices=["release", "approval", "pointer", "revocation", "override", "trust"],
        help="what it may sign, in --trust; repeatable (default: release)",
    )
    parser.add_argument(
        "--threshold",
        type=_positive,
        metavar="N",
        help="how many keys of that role must sign (default: as it is, or 1)",
    )
    parser.add_argument(
        "--environment",
        default="production",
        metavar="NAME",
        help="of a new trust file (default: %(default)s)",
    )
    parser.add_argument(
        "--names",
        action="append",
        metavar="NAME",
        help="release that a new trust file allows; repeatable (default: all)",
    )
    parser.add_argument(
        "--model-signing",
        action="store_true",
        help="a key on P-256 instead, for the OpenSSF's format, and KEY.pub beside",
    )
    _password(parser)


def _sign(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("release", metavar="RELEASE", help="directory of the release")
    parser.add_argument(
        "--key", action="append", required=True, metavar="KEY.pem", help="who signs; repeatable"
    )
    parser.add_argument(
        "--environment",
        action="append",
        metavar="NAME",
        help="where it may be loaded; repeatable (default: production)",
    )
    parser.add_argument("--not-before", metavar="MOMENT", help="from when on, as 2027-01-31T00:00:00Z")
    parser.add_argument("--expires", metavar="MOMENT", help="until when (default: what the manifest says)")
    parser.add_argument(
        "--requires",
        action="append",
        default=[],
        metavar="DISTRIBUTION=VERSION",
        help="lowest version; repeatable",
    )
    parser.add_argument(
        "--replace", action="store_true", help="make a new statement, and drop the signatures there"
    )
    parser.add_argument(
        "--model-signing", action="store_true", help="write model.sig, the OpenSSF's format, instead"
    )
    _password(parser)


def _revoke(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust", required=True, metavar="FILE", help="the trust file that names who may revoke"
    )
    parser.add_argument(
        "--key", action="append", required=True, metavar="KEY.pem", help="who signs; repeatable"
    )
    parser.add_argument(
        "--release",
        action="append",
        default=[],
        metavar="DIGEST=WHY",
        help="a release that counts no more; repeatable",
    )
    parser.add_argument(
        "--revoked-key",
        action="append",
        default=[],
        metavar="NAME=WHY",
        help="a key that counts no more; repeatable",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="begin a new list, without what is there: after a change of the keys that signed it",
    )
    parser.add_argument("--expires", metavar="MOMENT", help="after which hosts want a newer list")
    parser.add_argument("--out", metavar="FILE", help="default: revocations.sig beside the trust file")
    _password(parser)


def _follow(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("registry", metavar="REGISTRY", help="folder, or URL such as s3://bucket/registry")
    parser.add_argument("name", metavar="NAME", help="of the release")
    parser.add_argument(
        "--last-good", metavar="DIR", help="what the host keeps, as `last_good=` of Scorer.follow"
    )
    parser.add_argument(
        "--environment", metavar="NAME", help="default: that of the trust file, else production"
    )
    add_trust(parser)


def _rotate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trust", required=True, metavar="FILE", help="the trust file that hosts have")
    parser.add_argument(
        "--next", required=True, metavar="FILE", help="the next one: other keys, `epoch` one higher"
    )
    parser.add_argument(
        "--key",
        action="append",
        required=True,
        metavar="KEY.pem",
        help="of the role `trust`, of both files; repeatable",
    )
    _password(parser)


def _password(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--password-file",
        metavar="FILE",
        help=f"holds the password of the private key; default: the setting {PASSWORD_VARIABLE}, else none",
    )


def _bench(parser: argparse.ArgumentParser) -> None:
    _release(parser)
    parser.add_argument("--requests", metavar="FILE.jsonl", help="your own requests, one JSON object a line")
    parser.add_argument(
        "--n", type=_positive, metavar="N", help="calls to time (default: as many as fit into 6 s)"
    )
    parser.add_argument(
        "--candidates",
        type=_positive,
        metavar="K",
        help="candidates a ranking gets, when requests are made of golden rows (default: the contract's largest batch "
        "size, else 500)",
    )
    parser.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="NAME=LIMIT",
        help="exit code 1 when a figure is larger; repeatable. NAME is p50_ms, p95_ms, p99_ms, p99.9_ms (or _us) of the "
        "whole call, STAGE.p99_us of one stage (decode, resolve, fill, run, decide, encode), or `ratio` to the bare "
        "run. `--fail-if contract` takes the limits of the release's contract",
    )


def _diff(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", metavar="A", help="directory of the release that answers now")
    parser.add_argument("after", metavar="B", help="directory of the one that may come")
    add_trust(parser)


def _check(parser: argparse.ArgumentParser) -> None:
    _release(parser)
    parser.add_argument("--against", metavar="DIR", help="directory of the release that answers today")
    parser.add_argument(
        "--on", metavar="FILE", help="Parquet or Arrow file with rows, as `pack --golden` takes them"
    )
    parser.add_argument("--labels", metavar="COLUMN", help="of the rows: 1 = bad, or what was forecast")
    parser.add_argument(
        "--cohort",
        action="append",
        default=[],
        metavar="COLUMN",
        help="look at decisions by its values; repeatable",
    )
    parser.add_argument(
        "--positive",
        action="append",
        default=[],
        metavar="ACTION",
        help="that good rows must not get; repeatable (default: the policy's last)",
    )
    parser.add_argument(
        "--golden-users",
        metavar="FILE.jsonl",
        help="rankings to compare; with --store (default: those of the rows)",
    )
    parser.add_argument(
        "--k", type=_positive, default=10, metavar="K", help="how many of the first count (default: 10)"
    )
    parser.add_argument("--contract", metavar="FILE", help="JSON or TOML, instead of the release's own")
    parser.add_argument(
        "--float-model", metavar="FILE", help="ONNX file that a quantised release was made from"
    )
    parser.add_argument(
        "--bound", action="append", default=[], metavar="NAME=WARNS:FAILS", help="another bound; repeatable"
    )
    parser.add_argument(
        "--allow", action="append", default=[], metavar="CHECK", help="whose failure is intended; repeatable"
    )
    parser.add_argument(
        "--seconds", type=float, default=2.0, metavar="S", help="of timing (default: %(default)s)"
    )
    parser.add_argument("--report", metavar="FILE", help="write the report, JSON, for `retailinfer approve`")
    parser.add_argument("--html", metavar="FILE", help="write the report as a page with charts")
    add_trust(parser)


def _decisions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="of the log")
    parser.add_argument("--since", metavar="MOMENT", help="rows from then on, as 2027-01-31T00:00:00Z")
    parser.add_argument("--until", metavar="MOMENT", help="rows before that")
    parser.add_argument("--of", metavar="ENTITY=KEY", help="rows of one entity alone, as card=c-17")
    parser.add_argument("--rows", action="store_true", help="print the rows, one JSON object a line")
    parser.add_argument("--erase", metavar="ENTITY=KEY", help="take all rows of an entity out, of all times")
    parser.add_argument(
        "--hash-key",
        metavar="FILE",
        help="with the secret that the log hashes its keys with, for --of and --erase",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text}")
    return value


Command = Callable[[argparse.Namespace, Console], int]
