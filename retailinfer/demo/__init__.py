"""The demo: models on real grocery purchases and generated card payments, packed, loaded and replayed in this process.

Files: payments.py and grocery.py are the data, fraud.py and recommend.py the models and how good they are (metrics.py),
replay.py times held-out requests, report.py shows what came out, run.py is the order of it all.
Needs `retailinfer[demo]`; nothing else in the package imports from here but the command line.
"""
