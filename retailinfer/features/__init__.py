"""Features, declared once: spec (what the user says), fit (what data teaches it), program (how it runs), transform (tables).

Read in the order spec.py, arrow.py, fit.py, program.py, transform.py; each imports only those before it.
"""
