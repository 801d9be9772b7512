"""The JSON of a comparison is what its published schema says."""

import json

import jsonschema
import pytest
import torch

import pellucid as pl
from pellucid.html import page

SCHEMA = json.loads((page.TEMPLATES.parent / "schemas" / "comparison-1.json").read_text(encoding="utf-8"))


def changed() -> pl.CkptedTransformer:
    model = pl.load()
    with torch.no_grad():
        model.blocks[0].mlp.b_out[0] += 1
    return model


@pytest.mark.parametrize("other", [pl.load, changed])
def test_reports_follow_the_schema_which_can_refuse(other):
    report = json.loads(pl.compare(pl.load(), other(), inputs="Once upon a time").to_json())
    jsonschema.validate(report, SCHEMA)
    for wrong in ({**report, "verdict": "fine"}, {**report, "checkpoints": [{}]}, {}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, SCHEMA)
