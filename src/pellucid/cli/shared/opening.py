"""How a model is opened for a command, and the places where a command will write."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pellucid as pl
from pellucid.cli.shared.screen import progress
from pellucid.errors import ConfigError, NotFoundError, WeightsError
from pellucid.weights.manifests import read_json

DTYPES = ("float32", "float64", "float16", "bfloat16")


@dataclass(frozen=True)
class Opening:
    """A model by name, and what to read beside it.

    Args:
        name: An alias, a hub id, a folder or a file; None for the bundled model.
        config: A file that is read instead of the model's own configuration.
        ignore_config: Fields of the configuration that may be dropped unread.
        dtype: One of `DTYPES`, or "stored".
        tokenizer: A file, or a folder that holds one; None for the model's own.
    """

    name: str | None
    config: Path | None = None
    ignore_config: Collection[str] = ()
    dtype: str = "float32"
    tokenizer: Path | None = None

    def model(self, numerics: str = "exact") -> pl.CkptedTransformer:
        """Open it."""
        with progress(f"opening {self.name or 'the bundled model'}"):
            model = pl.load(
                self.name,
                dtype=self.dtype,
                numerics=numerics,
                config=None if self.config is None else configuration(self.config, self.ignore_config),
                ignore_config=self.ignore_config,
            )
            if self.tokenizer is not None:
                model.tokenizer = read_tokenizer(self.tokenizer)
        return model


def configuration(path: Path, ignored: Collection[str]) -> pl.TransformerConfig:
    """The configuration in a file.

    Raises:
        ConfigError: It holds none, or one that is not implemented.
        NotFoundError: It is not there.
    """
    return pl.TransformerConfig.from_dict(read_json(path, ConfigError, "config-not-json"), ignore=ignored)


def read_tokenizer(path: Path) -> pl.Tokenizer:
    """The tokenizer in a file, or in a folder.

    Raises:
        NotFoundError: There is none.
        WeightsError: It cannot be read.
    """
    found = pl.Tokenizer.from_folder(path) if path.is_dir() else pl.Tokenizer.from_file(path)
    if found is None:
        raise NotFoundError(
            f"--tokenizer {path}: a folder without tokenizer.json, and without vocab.json and merges.txt.",
            code="path-not-found",
            remedy="Give the path of a tokenizer.json.",
        )
    return found


def require_writable(outputs: Mapping[str, Path | None]) -> None:
    """Check that output files can be written before the command starts its work.

    Args:
        outputs: Option -> file; None if nothing was asked for.

    Raises:
        WeightsError: A folder, a place below a file, one that may not be written, or one place for two files.
    """
    taken: dict[Path, str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        problem = _problem(path)
        same = taken.setdefault(path.absolute(), option)
        if same != option and problem is None:
            problem = f"{same} is written there"
        if problem is not None:
            raise WeightsError(
                f"{option} {path}: cannot be written: {problem}.",
                code="path-not-writable",
                remedy="Name a file in a folder that you may write.",
            )


def _problem(path: Path) -> str | None:
    """Why a file cannot be written at a path; None if it can."""
    try:
        if path.is_dir() or not path.name:
            return "it is a folder, expected the name of a file"
        with suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()  # raises for a name that is too long for the system
        above = next(parent for parent in path.absolute().parents if parent.exists())
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return getattr(error, "strerror", None) or str(error)
    if not above.is_dir():
        return f"{above} is not a folder"
    if path.is_file() or not path.exists():  # what is no file, such as a device, is written in its place
        return None if os.access(above, os.W_OK | os.X_OK) else f"{above} may not be written"
    return None if os.access(path, os.W_OK) else "it may not be written"
