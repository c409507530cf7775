"""Policies on the Hugging Face Hub: fetched and published as safetensors and JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from llmdpd_torchrl.utils.errors import ConfigError, DataError, first_line

__all__ = ["download_policy", "looks_like_hub_id", "upload_policy"]

FILES = ("policy.json", "policy.safetensors", "README.md")


def looks_like_hub_id(name: str) -> bool:
    """Whether ``name`` may be an ``owner/name`` of the Hub: no folder of this machine, one slash.

    Examples:
        >>> looks_like_hub_id("someone/policy"), looks_like_hub_id("./someone/policy")
        (True, False)
    """
    part = r"[A-Za-z0-9][\w.-]*"
    return re.fullmatch(f"{part}/{part}", name) is not None and not Path(name).exists()


def download_policy(repository: str, revision: str | None = None) -> Path:
    """The local folder of a policy on the Hub; what is cached is not fetched again.

    Args:
        repository: ``"owner/name"``.
        revision: branch, tag or commit; default: the main branch.

    Raises:
        ConfigError: if the Hub's client is not installed.
        DataError: if there is no such policy, or the Hub can not be reached.
    """
    hub = _client()
    # Only these files, whatever else lies there.
    with _explained(f"no folder {repository}, and no policy {repository} from the Hub"):
        return Path(hub.snapshot_download(repository, revision=revision, allow_patterns=FILES))


def upload_policy(folder: Path, repository: str, *, private: bool = True) -> str:
    """Publish a saved policy and return its address.

    Args:
        folder: that :meth:`~llmdpd_torchrl.policies.LLMDPDPolicy.save_pretrained` wrote.
        repository: ``"owner/name"``; made if need be.
        private: whether a new repository is.

    Raises:
        ConfigError: if the Hub's client is not installed.
        DataError: if the Hub refuses, or can not be reached.
    """
    hub = _client()
    with _explained(f"can not publish {folder} as {repository}"):
        hub.HfApi().create_repo(repository, private=private, exist_ok=True)
        commit = hub.HfApi().upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=list(FILES)
        )
    return str(commit.commit_url)


def _client() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError(
            f'policies on the Hub ({error}) need: pip install "llmdpd_torchrl[hub]"'
        ) from error
    return huggingface_hub


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one line."""
    from huggingface_hub import errors

    reasons = {
        errors.GatedRepoError: "its terms must be accepted first, then set HF_TOKEN",
        errors.RevisionNotFoundError: "it has no such revision",
        errors.RepositoryNotFoundError: "there is none, or it is private and HF_TOKEN is not set",
        errors.OfflineModeIsEnabled: "HF_HUB_OFFLINE is set and it is not in the local cache",
        errors.LocalEntryNotFoundError: "the Hub can not be reached and it is not in the cache",
        ConnectionError: "the Hub can not be reached",
    }
    try:
        yield
    except (OSError, ValueError, errors.HTTPError) as error:
        reason = next(
            (reason for kind, reason in reasons.items() if isinstance(error, kind)),
            first_line(error) or type(error).__name__,
        )
        raise DataError(f"{what}: {reason}") from error
