"""Some of the campaign: damaged files of every kind are read, or refused by an error of ours, soon and in bounds.

`make test-all` reads twenty thousand of them.
"""

from __future__ import annotations

from collections import Counter

from fuzz.campaign import run

FILES = 150


def test_damaged_files_are_read_or_refused() -> None:
    campaign = run(FILES, "suite")
    assert campaign.failures == []
    assert campaign.files == FILES
    assert campaign.distinct > 0.9 * FILES
    total = sum(campaign.outcomes.values(), Counter[str]())
    assert set(total) == {"success", "refused"}
    assert len(campaign.codes) > 20
    assert all(found["refused"] for kind, found in campaign.outcomes.items() if kind != "generation_config.json")
