"""A checkpoint costs one line where its value is computed and one row of the schema: added to a copy of the package."""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

import pellucid
from killed import in_a_child

PACKAGE = Path(pellucid.__file__).parent
LINE = "        post = self.ckpt_doubled(2 * post, tap=tap) / 2\n"
BEFORE_THE_LINE = "        post = self.ckpt_post(self.act(pre), tap=tap)\n"
ROW = '    Point("mlp.ckpt_doubled", HIDDEN, "2 * mlp.ckpt_post", "twice what the neurons give", "twice"),\n'
AFTER_THE_ROW = '    Point("mlp.ckpt_mlp_out",'

EVERY_CONSUMER = """
import matplotlib
matplotlib.use("Agg")
import torch, pellucid as pl, support
from pellucid.cli.shared.tables import summarize
from pellucid.fast.decoder import decoder
from pellucid.gpt2.kernels import Decoder

ids = support.some_ids(2, 6)
model, fast = support.glass(), support.glass(numerics="fast")
name = "blocks.1.mlp.ckpt_doubled"

assert model.schema[name].meaning == "twice what the neurons give"
assert name in model.ckpt_names and "mlp.ckpt_doubled" in repr(model.schema)
assert len(model.ckpt_names) == 18 * 3 + 4

# capture, by every way to say its name; nothing else changes
logits, ckpts = model.run_with_ckpts(ids)
assert torch.equal(ckpts[name], 2 * ckpts["blocks.1.mlp.ckpt_post"])
assert ckpts["doubled", 1] is ckpts.get("doubled", "mlp", 1) is ckpts[name]
assert ckpts.stack("doubled").shape == (3, 2, 6, model.config.d_mlp)
assert torch.equal(logits, model(ids))
assert pl.estimate(model, ids).nbytes == ckpts.nbytes

# edit
zeroed = model.run_with_ckpts(ids, edits=[pl.Edit.zero(name)])[0]
assert torch.equal(zeroed, model.run_with_ckpts(ids, edits=[pl.Edit.zero("blocks.1.mlp.ckpt_post")])[0])
assert not torch.equal(zeroed, logits)

# generate with captures; the compiled step does not know the value, so the model gives it
wanted = ["mlp.ckpt_doubled", "mlp.ckpt_post"]
for one in (model, fast):
    seen = one.generate(ids, max_new_tokens=4, names=wanted).ckpts
    for block in range(3):
        assert torch.equal(seen[f"blocks.{block}.mlp.ckpt_doubled"], 2 * seen[f"blocks.{block}.mlp.ckpt_post"])
assert isinstance(decoder(fast.eval(), 2, ["blocks.0.mlp.ckpt_post"]), Decoder)
assert decoder(fast, 2, [name]) is None

# labelled arrays, measures, streams, figures, files
array = ckpts.to_xarray()["mlp.ckpt_doubled"]
assert array.dims == ("layer", "batch", "pos", "d_mlp")
norms = pl.measure.norms(ckpts, "mlp.ckpt_doubled")
assert norms.sizes["layer"] == 3
assert "doubled" in pl.plot.norms(norms).get_title() + pl.plot.norms(norms).get_ylabel()
moments = pl.measure.stream(model, [ids[0].tolist()], [pl.measure.Moments("mlp.ckpt_doubled")])
ckpts.save("ckpts.safetensors")
assert torch.equal(pl.ActivationCkpts.load("ckpts.safetensors")[name], ckpts[name])
assert [one.meaning for one in summarize(ckpts) if one.name == name] == ["twice what the neurons give"]

# comparison
other = support.glass()
with torch.no_grad():
    other.blocks[1].mlp.b_in += 0.5
same = pl.compare(model, support.glass(), inputs=ids)
assert name in {row.name for row in same.checkpoints}
assert same.verdict == "identical"
assert pl.compare(model, other, inputs=ids).first_divergence.where.startswith("blocks.1.mlp.ckpt_pre")

# the page
import refresh
assert "| `mlp.ckpt_doubled` | `[B, P, M]` | `2 * mlp.ckpt_post` | twice what the neurons give | twice |" in (
    refresh.with_points(refresh.POINTS_PAGE.read_text())
)
print("every consumer")
"""

MISFIT = """
import pellucid as pl, support
support.glass().generate([[1, 2]], max_new_tokens=2)
try:
    support.glass(numerics="fast").generate([[1, 2]], max_new_tokens=2)
except pl.NumericsError as error:
    assert error.code == "kernel-tables" and "mlp.ckpt_pre" in error.message, error
    print("refused")
"""


def changed(folder: Path, edits: list[tuple[str, str, str]]) -> Path:
    """A copy of the package in which texts are replaced: (file, what stands there once, what comes there).

    With what is compiled, which holds for files of the same time and size: compiling it all takes seconds.
    """
    shutil.copytree(PACKAGE, folder / "pellucid")
    for name, before, after in edits:
        path = folder / "pellucid" / name
        text = path.read_text(encoding="utf-8")
        assert text.count(before) == 1, (name, before)
        path.write_text(text.replace(before, after), encoding="utf-8")
    return folder


def output(folder: Path, script: str) -> str:
    """What a script prints in a child of this process that has none of the package, and imports the copy.

    To import torch and the others anew, too, would take most of the time.
    """

    def act() -> None:
        with (folder / "said").open("w", encoding="utf-8") as said, redirect_stdout(said), redirect_stderr(said):
            for name in [name for name in sys.modules if name.partition(".")[0] in ("pellucid", "support", "refresh")]:
                del sys.modules[name]
            sys.path[:0] = [str(folder), str(Path(__file__).parent), str(Path(__file__).parents[1] / "docs")]
            os.chdir(folder)
            try:
                exec(script, {"__name__": "__main__"})
                assert Path(sys.modules["pellucid"].__file__ or "").is_relative_to(folder), "the copy is what is tried"
            except BaseException:
                traceback.print_exc()
                raise

    status = os.waitpid(in_a_child(act), 0)[1]
    said = (folder / "said").read_text(encoding="utf-8")
    assert status == 0, said[-2000:]
    return said


def test_a_line_and_a_row_are_enough(tmp_path: Path) -> None:
    edits = [
        ("gpt2/model.py", BEFORE_THE_LINE, BEFORE_THE_LINE + LINE),
        ("gpt2/schema.py", AFTER_THE_ROW, ROW + AFTER_THE_ROW),
    ]
    folder = changed(tmp_path, edits)
    assert output(folder, EVERY_CONSUMER).endswith("every consumer\n")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param('Point("mlp.ckpt_pre", HIDDEN,', 'Point("mlp.ckpt_pre", RESIDUAL,', id="other axes"),
        pytest.param(
            'Point("mlp.ckpt_pre", HIDDEN,',
            'Point("mlp.ckpt_first", HIDDEN,',
            id="another name",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_compiled_step_that_does_not_fit_is_an_error(before: str, after: str, tmp_path: Path) -> None:
    edits = [("gpt2/schema.py", before, after)]
    if "first" in after:
        edits.append(("gpt2/model.py", "self.ckpt_pre(", "self.ckpt_first("))
    assert output(changed(tmp_path, edits), MISFIT).endswith("refused\n")
