"""`python -m opbound` is `opbound`."""

import sys

from opbound.cli import main

if __name__ == "__main__":
    sys.exit(main())
