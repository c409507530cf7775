"""A trained policy as files: safetensors, JSON and a card; on disk and on the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn

from llmdpd_torchrl import __version__
from llmdpd_torchrl.modules.build import make_networks
from llmdpd_torchrl.modules.config import NetworkConfig
from llmdpd_torchrl.policies.card import MARK, model_card
from llmdpd_torchrl.prompts import embed_texts, make_text_encoder
from llmdpd_torchrl.prompts.demonstrations import check_demonstration
from llmdpd_torchrl.utils.errors import (
    ConfigError,
    DamagedError,
    DataError,
    PromptError,
    explain_hub_errors,
    first_line,
)
from llmdpd_torchrl.utils.files import (
    check_kinds,
    check_tensors,
    file_sha256,
    read_document,
    write_json,
    write_tensors,
    write_text,
)
from llmdpd_torchrl.utils.parts import check_trust

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
LIBRARY = "library.safetensors"
_FORMAT = "llmdpd-policy"
_FORMAT_VERSION = 6
_CONFIG_4 = "policy.json"  # of version 4
#: What described how versions 4 and 5 retrieved.
_RETRIEVAL_BEFORE_6 = (
    "frame", "lookaheads", "residual_on_retrieved", "around_prompt", "min_base_fraction",
    "least_share",
)  # fmt: skip
#: Entries of a demonstration in the library, and where they are in its steps.
_STEPS: Mapping[str, NestedKey] = {
    "observation": "observation", "action": "action", "reward": ("next", "reward"),
}  # fmt: skip
#: What may lie beside a policy, such as its card and videos; it is not read.
_KINDS = (
    ".csv", ".html", ".jpg", ".json", ".md", ".mp4", ".png", ".safetensors", ".txt", ".yaml",
)  # fmt: skip
#: Put there by Git, the Hub's client, and locks.
_IGNORED = (".cache", ".git", ".gitattributes", ".gitignore", ".lock", "LICENSE")
_MALFORMED = (
    ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
_OF_ANY_MODULE = frozenset(vars(nn.Module()))
"""Attributes that say nothing of a module's kind: its mode, hooks, and what it holds."""


def is_saved(folder: str | os.PathLike[str]) -> bool:
    """Whether ``folder`` holds a saved policy, of this format or an earlier one."""
    return any((Path(folder) / name).is_file() for name in (CONFIG, _CONFIG_4))


def find_own(policy: Any) -> list[str]:
    """Whether a policy's actor is another than its configuration's.

    Compared are modules, tensors, and plain attributes, such as what a denoiser predicts or the
    bounds of an action. Returns ``["actor"]`` or nothing.
    """

    def structure(module: nn.Module | None) -> list[Any]:
        if module is None:
            return []
        parts = [
            (
                name,
                type(part),
                {k: v for k, v in vars(part).items() if k not in _OF_ANY_MODULE and _is_plain(v)},
            )
            for name, part in module.named_modules()
        ]
        return [parts, [(name, value.shape) for name, value in module.state_dict().items()]]

    with torch.random.fork_rng(devices=[]):  # a training that saves goes on as without
        networks = make_networks(policy.config)
    if structure(policy.encoder) != structure(networks.encoder):
        raise ConfigError(
            "the policy's prompt encoder is not the one that its configuration describes, so that "
            "it could not be loaded again: build it with make_networks(config), or save its "
            "state_dict()"
        )
    return ["actor"] if structure(policy.actor) != structure(networks.acting) else []


def _is_plain(value: Any) -> bool:
    """Whether a value can be compared: a number, a text or None, or a collection of such."""
    if isinstance(value, dict):
        return _is_plain([*value, *value.values()])
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def write_policy(
    folder: Path,
    config: NetworkConfig,
    info: dict[str, Any],
    weights: Mapping[str, Tensor],
    *,
    own: Sequence[str] = (),
    library: Mapping[int, TensorDictBase] | None = None,
) -> None:
    """Write weights, library, description and card, each complete or not at all.

    For ``own`` see :func:`find_own`; ``library`` holds a demonstration by task id.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, weights)
    shelves: dict[str, Tensor] = {}
    for task, steps in (library or {}).items():
        shelves |= {f"{task}.{name}": steps[key].contiguous() for name, key in _STEPS.items()}
    if shelves:
        write_tensors(folder / LIBRARY, shelves)
    packages = ("torch", "torchrl", "tensordict", "safetensors")
    versions = {name: metadata.version(name) for name in packages}
    fields = {name: list(ends) for name, ends in config.observation_fields.items()}
    description = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "network": asdict(config),
        "observation_layout": {"size": config.observation_dim, "fields": fields},
        "own_modules": list(own),
        "info": info,
        "versions": {"llmdpd_torchrl": __version__, **versions},
        "weights": {"file": WEIGHTS, "sha256": file_sha256(folder / WEIGHTS)},
    }
    if shelves:
        description["library"] = {"file": LIBRARY, "sha256": file_sha256(folder / LIBRARY)}
    write_json(folder / CONFIG, description)
    card = folder / CARD  # one written by hand stays
    if not card.exists() or is_generated(card):
        files = [path.name for path in folder.iterdir()]
        write_text(card, model_card(config, description, files))


def is_generated(card: Path) -> bool:
    """Whether a card was written with its policy, and not by hand."""
    return MARK in card.read_text(encoding="utf-8", errors="replace")


@dataclass(frozen=True)
class SavedPolicy:
    """A saved policy whose description, at ``path``, has been read and whose weights have not.

    ``network`` holds the arguments of :class:`~llmdpd_torchrl.modules.NetworkConfig`, ``digest``
    is the SHA-256 of the file ``weights``. ``own`` are modules that ``network`` does not describe,
    ``library`` is the digest of the file of demonstrations, if there is one.
    """

    path: Path
    network: dict[str, Any]
    info: dict[str, Any]
    weights: Path
    digest: str
    own: tuple[str, ...] = ()
    library: str | None = None

    def check_own(self, actor: nn.Module | None) -> None:
        """Refuse to load the weights of an actor of the user's own without it."""
        if "actor" in self.own and actor is None:
            raise ConfigError(
                f"{self.path}: the policy was saved with an actor of its own, which no file "
                "describes: build it and give from_pretrained(..., actor=...)"
            )

    def check_trust(self, trust: Collection[str]) -> None:
        """Refuse code of somebody's own, which the description names, in packages not trusted."""
        named = {"denoiser": self.network.get("denoiser")}
        encoder = self.info.get("text_encoder")
        named["text encoder"] = encoder.get("model") if isinstance(encoder, dict) else encoder
        for kind, name in named.items():
            if isinstance(name, str):
                check_trust(kind, name, trust, str(self.path))

    def check_weights(self) -> None:
        """Refuse weights that are missing or not what was saved."""
        self._check_digest(self.weights, self.digest)

    def read_weights(self, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors, which must have the names and shapes of ``expected``."""
        self.check_weights()
        path = self.weights
        with self._explained(path):
            state = load_file(path)
        check_tensors(state, expected, str(path), self.path.name)
        return state

    def read_library(self, config: NetworkConfig) -> dict[int, TensorDictBase]:
        """The demonstrations by task id, which must fit the networks; none without a library."""
        if self.library is None:
            return {}
        path = self.path.with_name(LIBRARY)
        self._check_digest(path, self.library)
        with self._explained(path):
            shelves = load_file(path)
        library: dict[int, TensorDictBase] = {}
        try:
            for number, task in enumerate(dict.fromkeys(n.partition(".")[0] for n in shelves)):
                steps = {key: shelves[f"{task}.{name}"] for name, key in _STEPS.items()}
                found = TensorDict(steps, [len(steps["observation"])])
                sizes = config.observation_dim, config.action_dim
                library[int(task)] = check_demonstration(found, number, *sizes)
        except (PromptError, *_MALFORMED) as error:
            raise DataError(f"{path}: {first_line(error)}; save it again") from None
        return library

    def _check_digest(self, path: Path, digest: str) -> None:
        with self._explained(path):
            if file_sha256(path) != digest:
                raise DamagedError(
                    f"{path}: damaged (its SHA-256 is not the one in {self.path.name}); save it "
                    "again"
                )

    @contextlib.contextmanager
    def _explained(self, path: Path) -> Iterator[None]:
        try:
            yield
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path}: missing or damaged ({error}); save it again") from None


def open_policy(folder: str | os.PathLike[str], revision: str | None = None) -> SavedPolicy:
    """Read a saved policy's description, of this format; of 4 and 5 if it does not retrieve."""
    name = os.fspath(folder)
    if _looks_like_hub_id(name):
        folder = download_policy(name, revision)
    path, versions, weights = Path(folder) / CONFIG, [_FORMAT_VERSION, 5], WEIGHTS
    if not path.is_file():
        path, versions, weights = Path(folder) / _CONFIG_4, [4], "policy.safetensors"
    if not path.is_file():
        raise DataError(f"no policy in {folder}: {CONFIG} is missing; train one first")
    check_kinds(folder, _KINDS, links=True, ignored=_IGNORED)
    description = read_document(path, _FORMAT, *versions)
    version = description["format_version"]
    with explained_description(path):
        network, info = description["network"], dict(description["info"])
        if version < _FORMAT_VERSION:
            network = {k: v for k, v in network.items() if k not in _RETRIEVAL_BEFORE_6}
            _check_no_retrieval(path, version, network)
        if version == 4:
            network["trained_task_ids"] = info.pop("trained_task_ids", ())
        digest = description["weights"]["sha256"]
        own = tuple(description.get("own_modules", ()))
        library = description["library"]["sha256"] if "library" in description else None
        return SavedPolicy(path, network, info, Path(folder) / weights, digest, own, library)


def _check_no_retrieval(path: Path, version: int, network: Mapping[str, Any]) -> None:
    is_prompted = network["prompt"] in ("both", "trajectory")
    if is_prompted and network["conditioning"] == "retrieved":
        raise DataError(
            f"{path}: format_version is {version}, and the policy retrieves as no release since "
            "does; train it again, or use the release that wrote it"
        )


@contextlib.contextmanager
def explained_description(path: Path) -> Iterator[None]:
    """Turn what a wrong description in ``path`` raises into one line."""
    try:
        yield
    except ConfigError as error:
        raise DataError(f"{path}: {first_line(error)}") from None
    except _MALFORMED as error:
        raise DataError(
            f"{path}: the policy's description is wrong ({type(error).__name__}: "
            f"{first_line(error)}); save it again"
        ) from None


def embed_prompts(texts: Sequence[str | Tensor], info: Mapping[str, Any], text_dim: int) -> Tensor:
    """Texts, or their embeddings ``[D]``, as a table of a row each, ``[n, D]``.

    Texts are embedded by the encoder that ``info`` says the policy was trained with.
    """
    words = [text for text in texts if isinstance(text, str)]
    embedded = iter(_embed_words(words, info) if words else ())
    rows = [next(embedded) if isinstance(text, str) else text for text in texts]
    for row in rows:
        if row.shape != (text_dim,):
            raise PromptError(
                f"the text embedding has shape {list(row.shape)}, the policy was trained with "
                f"[{text_dim}]: use the same text encoder"
            )
        if not row.isfinite().all():
            raise PromptError("the text embedding has numbers that are not finite: make it again")
    return torch.stack(rows)


def _embed_words(words: list[str], info: Mapping[str, Any]) -> Tensor:
    name = info.get("text_encoder")
    if name is None:
        raise ConfigError(
            "this policy does not say which text encoder it was trained with: give the "
            "embedding instead of the text"
        )
    encoder = make_text_encoder(name)
    for key, value in (info.get("text_encoder_identity") or {}).items():
        if encoder.identity.get(key) != value:
            raise PromptError(
                f"the policy was trained with a text encoder whose {key} is {value!r}, here it "
                f"is {encoder.identity.get(key)!r}: use the same, or give the embedding"
            )
    return embed_texts(words, encoder)


def _looks_like_hub_id(name: str) -> bool:
    """Whether ``name`` may be an ``owner/name`` of the Hub: one slash, and no folder here."""
    part = r"[A-Za-z0-9][\w.-]*"
    return re.fullmatch(f"{part}/{part}", name) is not None and not Path(name).exists()


def check_repository(name: str) -> None:
    """Refuse what cannot be the name of a repository on the Hub, ``"owner/name"``."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        if name.count("/") != 1:
            raise HFValidationError("it has no owner")
    except HFValidationError as error:
        raise ConfigError(
            f"{name!r} is no repository of the Hub ({first_line(error)}): give owner/name"
        ) from None


def download_policy(
    repository: str, revision: str | None = None, folder: Path | None = None
) -> Path:
    """Get a policy's files from the Hub into ``folder``, default: the Hub's cache."""
    from huggingface_hub import snapshot_download

    # Only these files, whatever else lies there.
    patterns = [CONFIG, WEIGHTS, LIBRARY, CARD, _CONFIG_4, "policy.safetensors"]
    with explain_hub_errors(f"no folder {repository}, and no policy {repository} from the Hub"):
        path = snapshot_download(
            repository, revision=revision, allow_patterns=patterns, local_dir=folder
        )
    return Path(path)


def upload_policy(
    folder: Path,
    repository: str,
    *,
    private: bool = True,
    message: str | None = None,
    extras: Sequence[str] = (),
) -> str:
    """Publish a saved policy as ``"owner/name"``, and return its address.

    Args:
        folder: of the policy; of its files only the policy's own and ``extras`` are sent.
        repository: which is created if it does not exist.
        private: whether a new repository is.
        message: of the commit.
        extras: names of further files.

    Raises:
        ConfigError: if the name is malformed, or there is no token, or it may not write there.
        DataError: if the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, errors, get_token

    check_repository(repository)
    what, login = f"cannot publish {folder} as {repository}", "`hf auth login`, or set HF_TOKEN"
    if get_token() is None:
        raise ConfigError(f"{what}: there is no token of the Hub: run {login}")
    try:
        HfApi().create_repo(repository, private=private, exist_ok=True)
        commit = HfApi().upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=[CONFIG, WEIGHTS, LIBRARY, CARD, *extras],
            commit_message=message or f"Policy of llmdpd_torchrl {__version__}",
        )
    except errors.OfflineModeIsEnabled:
        raise ConfigError(f"{what}: HF_HUB_OFFLINE is set: unset it") from None
    except errors.HfHubHTTPError as error:
        reason = first_line(error)
        if error.response.status_code in (401, 403):
            raise ConfigError(
                f"{what}: the token may not write there ({reason}): use one that may: {login}"
            ) from error
        raise DataError(f"{what}: {reason}") from error
    except (errors.HTTPError, ConnectionError, TimeoutError) as error:
        raise DataError(f"{what}: the Hub cannot be reached ({first_line(error)})") from error
    return str(commit.commit_url)
