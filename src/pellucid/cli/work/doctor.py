"""`pellucid doctor`: checks offline that all parts are installed and the bundled model is as shipped."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import typer
from rich.text import Text

from pellucid._version import __version__
from pellucid.cli.shared.failures import Exit
from pellucid.cli.shared.screen import progress, show, show_json
from pellucid.cli.shared.tables import heading
from pellucid.cli.shared.widths import Column, Grid
from pellucid.cli.verbs import Doctor
from pellucid.html.listing import counted
from pellucid.numerics import quickest
from pellucid.open import BUNDLED

LIBRARIES = ("torch", "numpy", "safetensors", "tokenizers", "huggingface_hub", "typer", "rich", "jinja2")
"""What pellucid always needs."""

EXTRAS = {
    "hf": (("transformers",), "comparing with transformers, and to and from its models"),
    "stats": (("xarray", "statsmodels", "matplotlib"), "labelled arrays, fitted models and figures"),
    "view": (("starlette", "uvicorn", "scikit-learn"), "`pellucid serve`, the viewer with the model behind it"),
    "corpus": (("zarr", "pyarrow"), "keeping the values of a corpus on disk"),
    "s3": (("s3fs",), "keeping them in S3"),
    "ray": (("ray",), "keeping the values of a corpus by many processes or computers"),
    "notebook": (("jupyterlab", "ipywidgets"), "opening the notebooks of the examples"),
}
"""Extra -> what it installs, and what that is for."""

MATRICES = {"W_QKV": (768, 2304), "W_O": (768, 768), "W_in": (768, 3072), "W_out": (3072, 768), "W_U": (768, 50257)}
"""Inputs and outputs of the matrices of gpt2-small, whose products `--speed` times."""

ROWS = (1, 16, 128, 512)
"""Tokens at once in the products that are timed."""

SUMS = "SHA256SUMS"
BUNDLED_FILES = ("config.json", "model.safetensors", "tokenizer.json")
"""What the bundled model cannot do without."""


@dataclass(frozen=True)
class FileCheck:
    """One file of the bundled model against its line in SHA256SUMS."""

    file: str
    state: str  # "intact", "changed", "missing", "unreadable" or "unlisted" (SHA256SUMS does not name it)
    expected: str | None  # the hash that SHA256SUMS states, if any
    found: str | None  # the hash of the file, if it could be read


def doctor(wish: Doctor) -> None:
    """Check, show the result, and fail if the bundled model is not intact."""
    with progress("reading the bundled model"):
        found = _found()
    if wish.speed:
        with progress("timing matrix products"):
            found["speed"] = _speed()
    if wish.as_json:
        show_json(found)
    else:
        _show(found)
    if not found["bundled"]["intact"]:
        raise typer.Exit(Exit.CHECK_FAILED)


def _found() -> dict[str, Any]:
    """All that is shown, as programs get it."""
    files = [vars(check) for check in check_files(BUNDLED)]
    intact = all(file["state"] == "intact" for file in files)
    return {
        "pellucid": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {library: version_of(library) for library in LIBRARIES},
        "device": {
            "cpu_cores": os.cpu_count(),
            "cpu_threads": torch.get_num_threads(),
            "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "mps": torch.backends.mps.is_available(),
        },
        "extras": [_extra(name, *what) for name, what in EXTRAS.items()],
        "bundled": {"folder": str(BUNDLED), "intact": intact, "files": files},
    }


def _speed() -> dict[str, Any]:
    """What fast and packed numerics take for each product of a GPT-2, as a run would find it out."""
    products: list[dict[str, Any]] = []
    for name, (inputs, outputs) in MATRICES.items():
        weight = torch.rand(outputs, inputs) if name == "W_U" else torch.rand(inputs, outputs).t()
        bias = None if name == "W_U" else torch.rand(outputs)
        for rows in ROWS:
            values = torch.rand(rows, inputs)
            taken, packing = (quickest.library_for(values, weight, bias, may_pack=may) for may in (False, True))
            choice = quickest.choices().get(quickest.shape_of(values, weight, bias, may_pack=True))
            rates = dict(choice.rates) if choice else {}
            products.append({"matrix": name, "rows": rows, "inputs": inputs, "outputs": outputs,
                             "library": taken, "packed": packing, "gflops": rates})  # fmt: skip
    return {**quickest.machine(), quickest.VARIABLE: os.environ.get(quickest.VARIABLE), "products": products}


def _extra(name: str, libraries: tuple[str, ...], purpose: str) -> dict[str, Any]:
    """The versions of what an extra installs, what is missing, and how to add it."""
    versions = {library: version_of(library) for library in libraries}
    missing = [library for library, version in versions.items() if version is None]
    install = f"pip install 'pellucid[{name}]'"
    return {"name": name, "versions": versions, "missing": missing, "for": purpose, "install": install}


def check_files(folder: Path) -> list[FileCheck]:
    """Each file that the model needs or SHA256SUMS names, hashed and compared."""
    stated = _stated(folder / SUMS)
    return [_check(folder / name, stated.get(name)) for name in sorted({*BUNDLED_FILES, *stated})]


def _stated(path: Path) -> dict[str, str]:
    """File name -> hash, from a file as `sha256sum` writes it; lines of another form state nothing."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    matches = (re.fullmatch(r"([0-9a-fA-F]{64}) [ *]([^/\\]+)", line.strip()) for line in lines)
    return {match[2]: match[1].lower() for match in matches if match}


def _check(path: Path, expected: str | None) -> FileCheck:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as problem:
        state = "missing" if isinstance(problem, FileNotFoundError) else "unreadable"
        return FileCheck(path.name, state, expected, None)
    state = "unlisted" if expected is None else "intact" if found == expected else "changed"
    return FileCheck(path.name, state, expected, found)


def version_of(library: str) -> str | None:
    """The installed version of a distribution, without importing it."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _show(found: dict[str, Any]) -> None:
    def grid(*columns: Column) -> Grid:
        return Grid(Column(label=True, style="cyan"), *columns, heading=None)

    versions, extras, files = grid(Column()), grid(Column(prose=True)), grid(Column(), Column(style="dim"))
    for name, version in ({name: found[name] for name in ("pellucid", "python")} | found["versions"]).items():
        versions.add(name, version or Text("not installed", style="red"))
    device = found["device"]
    cpu = f"cpu: {counted(device['cpu_threads'], 'thread')} on {counted(device['cpu_cores'] or 1, 'core')}"
    others = f"cuda: {', '.join(device['cuda']) or 'none'}   mps: {'yes' if device['mps'] else 'none'}"
    for extra in found["extras"]:
        if extra["missing"]:
            lack = Text(f"missing: {', '.join(extra['missing'])}", style="yellow")
            extras.add(extra["name"], lack + Text(f", for {extra['for']}"))
            extras.add("", Text(extra["install"], style="bold"))
        else:
            extras.add(extra["name"], "  ".join(f"{name} {version}" for name, version in extra["versions"].items()))
    for file in found["bundled"]["files"]:
        hashes = f"sha256 {file['found'][:16]}…" if file["found"] else ""
        if file["state"] == "changed":
            hashes += f", expected {file['expected'][:16]}…"
        style = "green" if file["state"] == "intact" else "bold red"
        files.add(file["file"], Text(file["state"], style=style), hashes)
    show(heading("versions", first=True), versions, heading("device"), Text(f"{cpu}   {others}"))
    show(heading("extras"), extras, heading("bundled model"), files, _verdict(found["bundled"]))
    if "speed" in found:
        _show_speed(found["speed"])


def _show_speed(speed: dict[str, Any]) -> None:
    table = Grid(Column("product", label=True, style="cyan"), Column("rows", right=True),
                 *(Column(way, right=True) for way in quickest.WAYS),
                 Column("fast takes"), Column("packed takes"))  # fmt: skip
    for row in speed["products"]:
        rates = (f"{row['gflops'][way]:.0f}" if row["gflops"] else "" for way in quickest.WAYS)
        name = f"{row['matrix']} {row['inputs']} x {row['outputs']}"
        table.add(name, str(row["rows"]), *rates, row["library"], row["packed"])
    said = speed[quickest.VARIABLE]
    how = f"{quickest.VARIABLE}={said}" if said else "measured now, in billions of operations a second"
    where = f"{speed['processor']}, {speed['vectors']}, torch {speed['torch']}"
    show(heading("products of fast numerics"), table, Text(f"{how}; {where}"))


def _verdict(bundled: dict[str, Any]) -> Text:
    if bundled["intact"]:
        return Text("intact: every file is the one that was shipped", style="green")
    unlisted = all(file["expected"] is None for file in bundled["files"])
    cause = f"{SUMS} names none of them; " if unlisted else ""
    return Text(f"not intact: {cause}reinstall with `pip install --force-reinstall pellucid`", style="bold red")
