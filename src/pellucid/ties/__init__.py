"""Weight tying: what is declared, what is live in memory, what is on disk, and what a save and a reload make of it."""

from pellucid.ties.audit import TieAudit, audit_ties, ties_report
from pellucid.ties.change import HeadChange, replace_head, tie, untie
from pellucid.ties.memory import TieGroup
from pellucid.ties.predict import AfterReload, ReloadedHead
from pellucid.ties.problems import Problem
from pellucid.ties.saving import Saved, save_hf

__all__ = [
    "AfterReload",
    "HeadChange",
    "Problem",
    "ReloadedHead",
    "Saved",
    "TieAudit",
    "TieGroup",
    "audit_ties",
    "replace_head",
    "save_hf",
    "tie",
    "ties_report",
    "untie",
]
