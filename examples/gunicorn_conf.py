"""gunicorn for flask_app.py: the release is loaded by the master, workers share its memory and are replaced now and then.

    python examples/train_and_pack_lightgbm.py build/example
    export RELEASE=$PWD/build/example/fraud CARDS=$PWD/build/example/cards.parquet
    gunicorn -c examples/gunicorn_conf.py --chdir examples flask_app:app

Needs `pip install 'retailinfer[arrow]' flask gunicorn`. What stands here and why: docs/processes.md.
"""

from __future__ import annotations

import os

from retailinfer.cpus import usable_cpus

bind = os.environ.get("BIND", "127.0.0.1:8000")

# One process a processor that this container may use. More threads than the scorer has permits (two): they wait for
# clients and tables, and answer 429 while both permits are taken.
workers = usable_cpus()
worker_class = "gthread"
threads = 4

# The master loads and forks: a worker needs memory of its own for what it writes, not for what it reads.
preload_app = True

# A worker ends after so many requests, not all at the same time; one that hangs is ended after 10 s.
max_requests = 100_000
max_requests_jitter = 10_000
timeout = 10
graceful_timeout = 10
