"""An audit as lines of plain text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pellucid.ties.audit import TieAudit
    from pellucid.ties.subject import Declared

SHOWN = 12
"""Groups of merely equal tensors that are shown; a result has all of them."""


def lines(audit: TieAudit) -> Iterator[str]:
    """The whole audit, top to bottom."""
    yield f"ties of {audit.what}"
    yield f"  parameters: {counts(audit)}"
    yield f"  bytes: {sizes(audit)}"
    yield f"  declared: {declared(audit.declared)}"
    for group in audit.groups[:SHOWN]:
        yield f"  {group!r}"
    if len(audit.groups) > SHOWN:
        yield f"  and {len(audit.groups) - SHOWN} more groups"
    if not audit.groups:
        yield "  no names share memory or numbers"
    yield f"  {audit.after_reload!r}"
    for problem in audit.problems:
        yield f"  problem: {problem.message}"
        yield f"    remedy: {problem.remedy}  [{problem.code}]"
    if not audit.problems:
        yield "  no problems"


def counts(audit: TieAudit) -> str:
    """The ways to count parameters, those that differ."""
    text = f"{audit.unique:,} unique, {audit.by_name:,} by name"
    return text if audit.by_object in (audit.unique, audit.by_name) else f"{text}, {audit.by_object:,} by Parameter"


def sizes(audit: TieAudit) -> str:
    """Memory and disk."""
    disk = "not to be saved" if audit.bytes_on_disk is None else f"{audit.bytes_on_disk:,} on disk"
    return f"{audit.bytes_in_memory:,} in memory, {disk}"


def declared(said: Declared) -> str:
    """Who says what."""

    def pairs(ties: object) -> str:
        return ", ".join(f"{t} = {s}" for t, s in ties.items()) if isinstance(ties, dict) and ties else "none"

    parts = [f"class: {pairs(said.by_class)}"] if said.by_class is not None else []
    parts += [f"class: a list in {', '.join(said.malformed)}"] if said.malformed else []
    parts += [f"configuration: {'tied' if said.by_config else 'untied'}"] if said.by_config is not None else []
    parts += [f"cache: {pairs(said.by_cache)}"] if said.by_cache is not None else []
    parts += [f"file: {pairs(said.recorded)}"] if said.recorded else []
    return "; ".join(parts) or "nothing"
