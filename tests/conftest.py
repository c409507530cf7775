"""One thread, a small dataset, prompts from it, a tiny language model, a Hub: for many tests."""

import os
import types

import pytest
import torch

from llmdpd_torchrl.collection.metaworld import CollectionSettings, collect_metaworld
from llmdpd_torchrl.data import TrajectoryDataset
from llmdpd_torchrl.prompts.tables import TrajectoryPromptBank
from llmdpd_torchrl.utils.processes import LocalBackend

# One thread a process, also of those that the tests start: several test processes run at once, and
# threads that wait for each other on a busy machine are many times slower than one.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory):
    """Folder of three episodes each of two tasks."""
    folder = tmp_path_factory.mktemp("dataset")
    settings = CollectionSettings(episodes_per_task=3, noise_levels=(0.0, 0.1))
    collect_metaworld(folder, ["reach-v3", "window-open-v3"], settings, progress=False)
    return folder


@pytest.fixture(scope="session")
def dataset(dataset_folder):
    """The episodes, all successful."""
    dataset = TrajectoryDataset.load(dataset_folder)
    assert dataset.trajectory_success.all()
    return dataset


@pytest.fixture(scope="session")
def backend():
    """One worker process for all evaluations: to start one takes longer than most tests."""
    backend = LocalBackend(1)
    close, backend.close = backend.close, lambda: None  # evaluators close what they are given
    yield backend
    close()


@pytest.fixture
def bank(dataset):
    return TrajectoryPromptBank.from_dataset(dataset, 16)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A randomly initialised Llama of four layers, with a word-level tokenizer and no padding."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    transformers.LlamaModel(config).save_pretrained(folder)
    words = ["[UNK]", "open", "close", "the", "door", "window", "robot", "arm"]
    words += ["slowly", "and", "then", "stop", "now"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def hub(monkeypatch):
    """A Hub that takes everything, and what it was asked."""
    calls = {}

    class Api:
        def create_repo(self, repository, **options):
            calls["create"] = (repository, options)

        def upload_folder(self, **options):
            calls["upload"] = options
            return types.SimpleNamespace(commit_url="https://hub/commit")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")
    return calls


def pytest_collection_modifyitems(items):
    """Skip what needs a CUDA device where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
