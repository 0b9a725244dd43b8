"""`python -m edgeprune` is the `edgeprune` command."""

from __future__ import annotations

import sys

from edgeprune.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
