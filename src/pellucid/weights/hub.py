"""Names become files here; this is the only module that may open a network connection.

A name is an existing file or folder, an alias of a published GPT-2, or the id of a repository on the Hugging
Face hub. Downloads go through `huggingface_hub`, so its cache, its tokens and its switches
(`HF_HUB_OFFLINE`, `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN`) mean here what they mean everywhere. A file appears in
the cache only when it is complete.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pellucid.check import as_flag
from pellucid.errors import ConfigError, NotFoundError, WeightsError, nearest, shown
from pellucid.names.calls import named_arguments
from pellucid.weights import manifests
from pellucid.weights.hub_answers import ALIASES, again, explain, no_name, no_such_name
from pellucid.weights.manifests import is_there, read_index, read_json, unreadable

BUNDLED_NAME = "bundled"
"""The name of the small model that ships inside the package."""

BUNDLED = Path(__file__).parents[1] / "bundled"
"""Its folder."""

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where a repository keeps its weights, the best first: safe before pickled, one file before many."""

_REPOSITORY_ID = re.compile(r"(?!(www\.)?(huggingface|hf)\.co/)[A-Za-z0-9_][\w.\-]*(/[\w.\-]+)?")
_FILE_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json")
_OFFLINE_VALUES = ("1", "ON", "YES", "TRUE")


@named_arguments()
@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """How to reach the hub; the defaults are `huggingface_hub`'s.

    Args:
        revision: A branch, tag or commit; the main branch if None.
        cache_dir: Where downloads are kept; `HF_HOME` decides if None.
        token: An access token; the one that is logged in if None.
        offline: Use the cache only. `HF_HUB_OFFLINE=1` in the environment does the same.
        endpoint: Address of the hub; `HF_ENDPOINT` or the public hub if None.
    """

    revision: str | None = None
    cache_dir: str | Path | None = None
    token: str | None = None
    offline: bool = False
    endpoint: str | None = None

    def __post_init__(self) -> None:
        offline = as_flag(self.offline)
        if offline is None:
            raise ConfigError(
                f"hub: offline={shown(self.offline)}, expected True or False.",
                code="config-wrong-type",
                remedy="Give offline=True to use the cache only, or leave it out.",
            )
        object.__setattr__(self, "offline", offline)

    @property
    def address(self) -> str | None:
        """The hub's address, given here or by the environment; None for the public one."""
        return self.endpoint or os.environ.get("HF_ENDPOINT")

    @property
    def is_offline(self) -> bool:
        """Whether the network is off limits, by this object or by the environment."""
        return self.offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in _OFFLINE_VALUES


def locate(name: str | os.PathLike[str], options: HubOptions | None = None) -> Path:
    """The folder or file on this machine that holds the model of this name.

    An existing path is returned as it is. From a repository (an alias in `ALIASES`, or an id such as
    `openai-community/gpt2`), `config.json`, the best weights (`WEIGHT_FILES`), `generation_config.json` and the
    tokenizer's files are downloaded, all of one commit, unless they are cached; their folder is returned.
    """
    path = _existing(name)
    if path is not None:
        return path
    repository = _open(os.fspath(name), options or HubOptions())
    config = repository.require_config()
    # One commit for every file, even if the branch moves on between two downloads.
    repository = replace(repository, options=replace(repository.options, revision=config.parent.name))
    for candidate in WEIGHT_FILES:
        weights = repository.fetch(candidate)
        if weights is not None:
            _fetch_shards(repository, weights)
            break
    else:
        raise NotFoundError(
            f"{repository.id}: none of {', '.join(WEIGHT_FILES)} {repository.place}.",
            code="hub-no-weights",
            remedy="Choose a repository with safetensors or PyTorch weights, or allow the network once to "
            "complete the cache.",
        )
    if repository.fetch("tokenizer.json") is None:
        repository.fetch("merges.txt")
        repository.fetch("added_tokens.json")
        if repository.fetch("vocab.json") is None:
            repository.fetch("vocab.txt")  # not read, but named at the first text
    repository.fetch("tokenizer_config.json")
    repository.fetch("special_tokens_map.json")
    repository.fetch("generation_config.json")
    return config.parent


def read_config(name: str | os.PathLike[str], options: HubOptions | None = None) -> dict[str, Any]:
    """The parsed `config.json` of a folder or of a repository; only that file is downloaded."""
    path = _existing(name)
    if path is None:
        path = _open(os.fspath(name), options or HubOptions()).require_config()
    if path.is_dir():
        path = path / "config.json"
    if not is_there(path):
        raise NotFoundError(
            f"{path.parent}: no config.json.",
            code="config-not-found",
            remedy="Give the folder that save_pretrained wrote, or pass config= with the facts of the model.",
        )
    return read_json(path, ConfigError, "config-not-json")


def _existing(name: str | os.PathLike[str]) -> Path | None:
    """The path of this name if there is one; None for a string that may be the id of a repository."""
    if not isinstance(name, str | os.PathLike):
        raise no_name(name)
    text = os.fspath(name)
    if text == BUNDLED_NAME:
        return BUNDLED
    if not text or "\0" in text:
        raise no_such_name(text)
    try:
        path = Path(text).expanduser()
        if path.exists() or path.is_symlink():  # whoever opens a link that leads nowhere says so
            return path
    except (OSError, RuntimeError) as problem:
        if isinstance(problem, PermissionError):
            raise unreadable(Path(text), problem) from problem
        raise no_such_name(text) from problem
    if not isinstance(name, str):
        raise no_such_name(text)
    return None


@dataclass(frozen=True)
class _Repository:
    """A repository on the hub, and whether the hub answers; if not, the cache is all there is."""

    id: str
    options: HubOptions
    reachable: bool

    @property
    def place(self) -> str:
        """Where files are looked for, for messages."""
        if self.reachable:
            return "on the hub"
        why = "the network is switched off" if self.options.is_offline else "the hub cannot be reached"
        return f"in the cache, and {why}"

    def require_config(self) -> Path:
        """`config.json` in the cache, downloaded if need be."""
        path = self.fetch("config.json")
        if path is not None:
            return path
        if self.reachable:
            raise NotFoundError(
                f"{self.id}: no config.json on the hub.",
                code="hub-no-config",
                remedy="Choose a repository that holds a model as transformers writes it.",
            )
        if self.options.is_offline:
            raise NotFoundError(
                f"{self.id}: no such path here, not {self.place}.",
                code="hub-offline",
                remedy="Unset HF_HUB_OFFLINE and offline=, or give a folder that holds the model.",
            )
        raise NotFoundError(
            f"{self.id}: no such path here, not {self.place}.",
            code="hub-unreachable",
            remedy=f"{nearest(self.id, ALIASES)} Check the spelling if a path was meant; otherwise check the "
            "connection, or set HF_ENDPOINT to a mirror.".strip(),
        )

    def fetch(self, file: str) -> Path | None:
        """One file in the cache, downloaded if need be; None if the repository has no such file."""
        import huggingface_hub
        from huggingface_hub import errors

        try:
            if self.reachable and not self._is_published(file):
                return None
            found = again(
                lambda: huggingface_hub.hf_hub_download(
                    self.id,
                    file,
                    revision=self.options.revision,
                    cache_dir=self.options.cache_dir,
                    token=self.options.token,
                    local_files_only=not self.reachable,
                    endpoint=self.options.address,
                )
            )
        except WeightsError:
            raise
        except errors.EntryNotFoundError as problem:
            if self.reachable:  # it is published; what was not found is something else
                raise explain(problem, self.id, file, self.options.revision) from problem
            return None
        # Not only HTTP errors come out of a download: the transport, the cache folder and the validation of
        # names have their own exceptions, and the transport's class changed between versions of the library.
        except Exception as problem:
            raise explain(problem, self.id, file, self.options.revision) from problem
        manifests.require_content(Path(found))
        return Path(found)

    def _is_published(self, file: str) -> bool:
        """Whether the hub has a file, whose content it names so that the cache keeps it inside."""
        import huggingface_hub
        from huggingface_hub import errors

        where = self.options.address
        url = huggingface_hub.hf_hub_url(self.id, file, revision=self.options.revision, endpoint=where)
        try:
            found = again(lambda: huggingface_hub.get_hf_file_metadata(url, token=self.options.token, endpoint=where))
        except errors.EntryNotFoundError:
            return False
        etag = found.etag
        if etag is not None and not re.fullmatch(r"[\w\-]{1,200}", etag):
            raise WeightsError(
                f"{self.id}/{file}: the hub gives {shown(etag)} as the digest of its content, which is not a digest.",
                code="hub-refused",
                remedy="Do not use this address (HF_ENDPOINT, endpoint=); unset it to reach the public hub.",
            )
        return True


def _open(name: str, options: HubOptions) -> _Repository:
    """The repository of this name. One request tells whether the hub answers.

    Without it `hf_hub_download` would try for 23 seconds to reach a hub that is not there.
    """
    repository = ALIASES.get(name, name)
    if not _REPOSITORY_ID.fullmatch(repository) or name.endswith(_FILE_ENDINGS) or ".." in name:
        raise no_such_name(name)
    if options.is_offline:
        return _Repository(repository, options, reachable=False)
    import huggingface_hub
    from huggingface_hub import errors

    endpoint = options.address
    try:
        url = huggingface_hub.hf_hub_url(repository, "config.json", revision=options.revision, endpoint=endpoint)
        again(lambda: huggingface_hub.get_hf_file_metadata(url, token=options.token, endpoint=endpoint))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as problem:
        raise explain(problem, repository, "config.json", options.revision) from problem
    except errors.HfHubHTTPError as problem:
        return _Repository(repository, options, reachable=problem.response.status_code < 500)
    except Exception:
        return _Repository(repository, options, reachable=False)
    return _Repository(repository, options, reachable=True)


def _fetch_shards(repository: _Repository, index: Path) -> None:
    if index.suffix != ".json":
        return
    for shard in sorted(set(read_index(index).values())):
        if repository.fetch(shard) is None:
            raise NotFoundError(
                f"{repository.id}: {index.name} names {shard}, which is not {repository.place}.",
                code="shard-missing",
                remedy="Choose another revision, or tell the repository's owner that the weights are incomplete.",
            )
