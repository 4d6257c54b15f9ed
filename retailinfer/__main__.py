"""`python -m retailinfer`: the same as the script `retailinfer`. What it can do is in cli/."""

import sys

from retailinfer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
