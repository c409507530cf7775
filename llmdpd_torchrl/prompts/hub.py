"""Hugging Face models: pin one to a commit, load it quietly, or say in one line why not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmdpd_torchrl.utils.errors import PromptError

__all__ = ["explain_loading_error", "quiet_transformers", "resolve_commit"]

_WAYS_OUT = "use the embedded model 'smollm2', a local model folder, or a prompt that is cached"
_TIMEOUT = 10.0  # seconds; the Hub's own client would retry for half a minute


def resolve_commit(model: str, revision: str) -> str:
    """Return the commit that ``revision`` of a Hub model stands for.

    A commit hash stands for itself. Then the local Hub cache is asked, so that a model that is
    already there stays what it is and needs no connection; then the Hub.

    Args:
        model: the Hub id, ``"owner/name"``.
        revision: branch, tag or commit hash.

    Raises:
        PromptError: if there is no such model or revision, or no connection to find out.
    """
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    try:
        from huggingface_hub import HfApi, constants
    except ImportError as error:
        raise PromptError(
            f'using {model} of the Hub ({error}) needs: pip install "llmdpd_torchrl[llm]"'
        ) from error
    cached = _cached_commit(model, revision, constants.HF_HUB_CACHE)
    if cached is not None:
        return cached
    if constants.is_offline_mode():
        raise PromptError(
            f"HF_HUB_OFFLINE is set and {model} (revision {revision}) is not in the local Hub "
            f"cache: unset it to fetch the model once, or {_WAYS_OUT}"
        )
    with explain_loading_error(model):
        sha = HfApi().model_info(model, revision=revision, timeout=_TIMEOUT).sha
    if sha is None:
        raise PromptError(f"the Hub names no commit for {model}, revision {revision}")
    return sha


def _cached_commit(model: str, revision: str, hub_cache: str) -> str | None:
    ref = Path(hub_cache) / f"models--{model.replace('/', '--')}" / "refs" / revision
    return ref.read_text().strip() if ref.is_file() else None


@contextmanager
def explain_loading_error(model: str) -> Iterator[None]:
    """Turn what transformers and the Hub's client raise into one line about ``model``.

    Raises:
        PromptError: for every failure to find, reach or read the model.
    """
    from huggingface_hub import errors
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError, errors.HTTPError) as error:
        # transformers wraps the Hub client's error, which is the one that tells most.
        chain = list(_causes(error))

        def caused_by(*kinds: type[BaseException]) -> bool:
            return any(isinstance(cause, kinds) for cause in chain)

        if caused_by(errors.GatedRepoError):
            reason = (
                "its licence must be accepted first: do so on the model's page, then set HF_TOKEN"
            )
        elif caused_by(errors.RevisionNotFoundError):
            reason = "the Hub has no such revision of it: check revision="
        elif caused_by(errors.RepositoryNotFoundError, errors.HFValidationError):
            reason = "the Hub has no such model, or it is private and HF_TOKEN is not set"
        elif caused_by(errors.OfflineModeIsEnabled):
            reason = f"HF_HUB_OFFLINE is set and not all its files are cached; {_WAYS_OUT}"
        elif caused_by(errors.HTTPError, ConnectionError, errors.LocalEntryNotFoundError):
            reason = f"the Hub can not be reached; {_WAYS_OUT}"
        else:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            reason = f"{first} (are its files whole?)"
        raise PromptError(f"can not load the language model {model}: {reason}") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence reports of the weights that are left out on purpose, and the loading bars."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
