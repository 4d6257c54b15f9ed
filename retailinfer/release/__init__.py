"""What a release is on disk: its manifest, its files, its golden rows.

Rules:
  * Nothing here knows models, specs or policies: files are bytes, and a parser is handed in by whoever owns a format.
  * Imports of this package: errors, contracts, msgspec and the standard library. Never `onnx`.
manifest.py = what the release says of itself; bundle.py = reading and writing the directory; golden.py = rows whose
answers are known.
"""
