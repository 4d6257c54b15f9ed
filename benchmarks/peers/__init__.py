"""What people use today, one file each, written as well as we can: a slow peer would flatter the figures.

Rules:
  * A peer gives the same answer as the library from the same bytes; `measures` compares them before timing.
  * A peer imports its own packages and never retailinfer.
  * Where a choice is open, it is the one that favours the peer, and a comment says so.
"""
