"""What runs before production: training sets out of history; converting, checking, quantising and packing models.

Rules:
  * `onnx`, converters and trainers are imported here only, and only by the function that needs them.
  * What is refused is refused here, with the operator, dtype or column named, so that it never comes up at a request.
replay.py = training sets without leakage, history.py = its joins; pack.py = the whole way; convert/ = one file per trainer;
preflight.py = what an ONNX graph may contain; facts.py = what can be told from it; wiring.py = which input takes what;
trial.py = running the models over rows; agreement.py = the trainer's answers; quantize.py = int8, measured; golden.py = rows
with known answers; arrays.py = releases without features; describe.py = the manifest. After packing: diff.py = what changed;
check.py = may it answer (check_*.py = the parts, compare.py = two releases over the same rows, footprint.py = memory);
loading.py, samples.py, timing.py = a release opened, asked and timed by a tool.
"""
