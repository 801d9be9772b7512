"""`python -m pellucid.cli` is `python -m pellucid`."""

from __future__ import annotations

from pellucid.__main__ import process

process()
