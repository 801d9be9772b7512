"""`python -m pellucid.cli` is `pellucid`."""

from __future__ import annotations

from pellucid.cli import main

main()
