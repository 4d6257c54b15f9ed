"""The command line: `retailinfer demo | pack | verify | inspect | bench`.

Rules:
  * Answers go to stdout, progress and errors to stderr; with `--json` stdout holds one JSON value and nothing else.
  * Exit code 0: done and good. 1: refused, broken, or a limit was exceeded; the reason is one line. 2: the arguments mean
    nothing.
  * A command imports what it needs when it runs, so that `--help` is quick and no extra is needed for it.
main.py = arguments and exit codes; one file per command; console.py = how they print; releases.py = loading for tools;
tables.py and settings.py = the files that people give; samples.py = requests made of golden rows; timing.py = the clock.
"""
