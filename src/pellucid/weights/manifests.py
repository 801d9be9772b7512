"""The small JSON files beside the weights: `config.json` and the index of a sharded checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pellucid.errors import ConfigError, NotFoundError, WeightsError


def read_json(path: Path, error: type[ConfigError | WeightsError], code: str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ConfigError | WeightsError: The class given, with the code given, if the file is anything else.
        NotFoundError: The file is not there.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise unreadable(path, problem) from problem
    except (ValueError, RecursionError) as problem:
        raise error(
            f"{path}: not JSON: {problem}.", code=code, remedy="Download or write the file again; it is damaged."
        ) from problem
    if not isinstance(content, dict):
        raise error(
            f"{path}: a JSON {type(content).__name__}, expected an object.",
            code=code,
            remedy="Give the file that save_pretrained wrote.",
        )
    return content


def read_index(path: Path) -> dict[str, str]:
    """The `weight_map` of a sharded checkpoint: parameter name -> file name in the same folder.

    Raises:
        WeightsError: Not such an index, or a file name that leaves the folder.
    """
    weight_map = read_json(path, WeightsError, "index-not-json").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(
            f"{path}: weight_map is {type(weight_map).__name__}, expected an object that names a file per tensor.",
            code="index-no-weight-map",
            remedy="Download or write the index again.",
        )
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not re.fullmatch(r"[\w\-][\w.\-]*", shard):
            raise WeightsError(
                f"{path}: {tensor} is said to be in {shard!r}, expected a file name in the same folder.",
                code="index-unsafe-path",
                remedy="Do not use this checkpoint unless you trust its author; shard names must be plain file names.",
            )
    return weight_map


def unreadable(path: Path, problem: OSError) -> WeightsError:
    """The error to raise for a file that the operating system would not hand over."""
    if isinstance(problem, FileNotFoundError):
        return NotFoundError(f"{path}: not there.", code="path-not-found", remedy="Check the spelling of the path.")
    return WeightsError(
        f"{path}: cannot be read: {problem.strerror or problem}.",
        code="path-unreadable",
        remedy="Check the permissions of the file and of the folders above it.",
    )
