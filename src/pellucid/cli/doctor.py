"""What `pellucid doctor` can be asked."""

from __future__ import annotations

from dataclasses import dataclass

from pellucid.cli.shared.options import Wish


@dataclass(frozen=True, kw_only=True)
class Doctor(Wish):
    """Whether everything is there."""

    MORE = """
    Shows versions, devices, missing extras with the command that adds them, and whether the bundled model is
    intact, which is what decides the exit code. Uses no network.
    """
