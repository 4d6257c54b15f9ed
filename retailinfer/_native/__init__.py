"""The native core: Cython and C, one extension per `.pyx`; `reference.py` is the plain NumPy twin that tests compare with."""
