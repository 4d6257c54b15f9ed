"""What a process knows about its entities: tables of rows by key, shared by all scorers, keyed by their own definition.

store.py has the Store, table.py the Snapshot (an immutable whole catalogue), arrow.py reads columns for it.
"""
