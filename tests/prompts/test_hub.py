"""Pinning a Hub model and the one-line reasons why it can not be had; nothing goes out."""

from __future__ import annotations

import pytest

from llmdpd_torchrl.prompts import HuggingFaceEncoder, embed_texts
from llmdpd_torchrl.prompts.hub import explain_loading_error, resolve_commit
from llmdpd_torchrl.utils.errors import PromptError

hub = pytest.importorskip("huggingface_hub")
errors = pytest.importorskip("huggingface_hub.errors")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def refuse_to_connect(monkeypatch, error):
    def model_info(self, *args, **options):
        raise error

    monkeypatch.setattr(hub.HfApi, "model_info", model_info)


def response(status):
    client = __import__(errors.HTTPError.__module__.split(".")[0])  # httpx, or its successor
    return client.Response(status, request=client.Request("GET", "https://example.org"))


def test_a_commit_stands_for_itself(monkeypatch):
    refuse_to_connect(monkeypatch, AssertionError("asked the Hub"))
    assert resolve_commit("owner/name", COMMIT) == COMMIT


def test_a_cached_model_needs_no_connection(hub_cache, monkeypatch):
    refuse_to_connect(monkeypatch, AssertionError("asked the Hub"))
    ref = hub_cache / "models--owner--name" / "refs" / "main"
    ref.parent.mkdir(parents=True)
    ref.write_text(COMMIT)
    encoder = HuggingFaceEncoder("owner/name", device="cpu")
    assert encoder.identity["revision"] == COMMIT
    assert encoder.identity["model"] == "owner/name"


def test_offline_is_honoured_at_once(hub_cache, monkeypatch):
    refuse_to_connect(monkeypatch, AssertionError("asked the Hub"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PromptError, match=r"HF_HUB_OFFLINE is set and owner/name.*smollm2"):
        embed_texts(["open the door"], "owner/name", cache_dir=hub_cache)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (lambda: errors.RepositoryNotFoundError("404", response=response(404)), "no such model"),
        (lambda: errors.RevisionNotFoundError("404", response=response(404)), "no such revision"),
        (lambda: errors.GatedRepoError("403", response=response(403)), "licence must be accepted"),
        (lambda: errors.OfflineModeIsEnabled("off"), "HF_HUB_OFFLINE is set"),
        (lambda: errors.HTTPError("Name or service not known"), "can not be reached"),
        (lambda: ConnectionError("refused"), "can not be reached"),
    ],
)
def test_reasons_are_one_line_that_names_the_model(hub_cache, monkeypatch, error, words):
    refuse_to_connect(monkeypatch, error())
    with pytest.raises(PromptError, match=f"owner/name: .*{words}") as caught:
        resolve_commit("owner/name", "main")
    assert "\n" not in str(caught.value)


def test_the_cause_behind_a_wrapped_error_is_the_one_that_is_told():
    gated = errors.GatedRepoError("403", response=response(403))
    with pytest.raises(PromptError, match="licence"), explain_loading_error("owner/name"):
        raise OSError("You are trying to access a gated repo.\nMake sure ...") from gated


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError), explain_loading_error("owner/name"):
        raise KeyError("not a loading error")
