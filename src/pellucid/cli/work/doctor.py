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
from pellucid.cli.doctor import Doctor
from pellucid.cli.shared.failures import Exit
from pellucid.cli.shared.layout import Column, Grid
from pellucid.cli.shared.screen import progress, show, show_json
from pellucid.cli.shared.tables import heading
from pellucid.open import BUNDLED

LIBRARIES = ("torch", "numpy", "safetensors", "tokenizers", "huggingface_hub", "typer", "rich", "jinja2")
"""What pellucid always needs."""

EXTRAS = {
    "hf": (("transformers",), "comparing with transformers, and to and from its models"),
    "stats": (("xarray", "statsmodels", "matplotlib"), "labelled arrays, fitted models and figures"),
    "notebook": (("jupyterlab", "ipywidgets"), "opening the notebooks of the examples"),
}
"""Extra -> what it installs, and what that is for."""

SUMS = "SHA256SUMS"
BUNDLED_FILES = ("config.json", "model.safetensors", "tokenizer.json")
"""What the bundled model cannot do without."""


@dataclass(frozen=True)
class FileCheck:
    """One file of the bundled model against its line in SHA256SUMS.

    Attributes:
        file: Its name.
        state: "intact", "changed", "missing", "unreadable" or "unlisted" (SHA256SUMS does not name it).
        expected: The hash that SHA256SUMS states, if any.
        found: The hash of the file, if it could be read.
    """

    file: str
    state: str
    expected: str | None
    found: str | None


def doctor(wish: Doctor) -> None:
    """Check, show the result, and fail if the bundled model is not intact."""
    with progress("reading the bundled model"):
        files = check_files(BUNDLED)
    intact = all(check.state == "intact" for check in files)
    if wish.as_json:
        show_json(_as_dict(files, intact=intact))
    else:
        _show(files, intact=intact)
    if not intact:
        raise typer.Exit(Exit.CHECK_FAILED)


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


def extras() -> list[dict[str, Any]]:
    """Each extra with the versions of what it installs, what is missing, and how to add it."""
    return [
        {
            "name": name,
            "versions": (versions := {library: version_of(library) for library in libraries}),
            "missing": [library for library, version in versions.items() if version is None],
            "for": purpose,
            "install": f"pip install 'pellucid[{name}]'",
        }
        for name, (libraries, purpose) in EXTRAS.items()
    ]


def device() -> dict[str, Any]:
    """What torch can compute on."""
    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu_cores": os.cpu_count(),
        "cpu_threads": torch.get_num_threads(),
        "cuda": cards,
        "mps": torch.backends.mps.is_available(),
    }


def _as_dict(files: list[FileCheck], *, intact: bool) -> dict[str, Any]:
    return {
        "pellucid": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {library: version_of(library) for library in LIBRARIES},
        "device": device(),
        "extras": extras(),
        "bundled": {"folder": str(BUNDLED), "intact": intact, "files": [vars(check) for check in files]},
    }


def _show(files: list[FileCheck], *, intact: bool) -> None:
    show(heading("versions", first=True), _versions_table())
    show(heading("device"), _device_line())
    show(heading("extras"), _extras_table())
    show(heading("bundled model"), _files_table(files), _verdict(files, intact=intact))


def _grid(*columns: Column) -> Grid:
    return Grid(Column(label=True, style="cyan"), *columns, heading=None)


def _versions_table() -> Grid:
    grid = _grid(Column())
    known = {"pellucid": __version__, "python": platform.python_version()}
    for name, version in {**known, **{library: version_of(library) for library in LIBRARIES}}.items():
        grid.add(name, version or Text("not installed", style="red"))
    return grid


def _device_line() -> Text:
    found = device()
    cards = ", ".join(found["cuda"]) or "none"
    threads = f"{found['cpu_threads']} thread{'s' * (found['cpu_threads'] != 1)}"
    cpu = f"cpu: {threads} on {found['cpu_cores']} cores"
    return Text(f"{cpu}   cuda: {cards}   mps: {'yes' if found['mps'] else 'none'}")


def _extras_table() -> Grid:
    grid = _grid(Column(prose=True))
    for extra in extras():
        if extra["missing"]:
            lack = Text(f"missing: {', '.join(extra['missing'])}", style="yellow")
            grid.add(extra["name"], lack + Text(f", for {extra['for']}"))
            grid.add("", Text(extra["install"], style="bold"))
        else:
            grid.add(extra["name"], "  ".join(f"{name} {version}" for name, version in extra["versions"].items()))
    return grid


def _files_table(files: list[FileCheck]) -> Grid:
    grid = _grid(Column(), Column(style="dim"))
    for check in files:
        good = check.state == "intact"
        hashes = f"sha256 {check.found[:16]}…" if check.found else ""
        if check.state == "changed":
            hashes += f", expected {(check.expected or '')[:16]}…"
        grid.add(check.file, Text(check.state, style="green" if good else "bold red"), hashes)
    return grid


def _verdict(files: list[FileCheck], *, intact: bool) -> Text:
    if intact:
        return Text("intact: every file is the one that was shipped", style="green")
    cause = f"{SUMS} names none of them; " if all(check.expected is None for check in files) else ""
    return Text(f"not intact: {cause}reinstall with `pip install --force-reinstall pellucid`", style="bold red")
