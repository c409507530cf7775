"""Whatever is put into a file, it is read, or refused in one line."""

import copy
import json
import shutil

import h5py
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmdpd_torchrl.data import Manifest, load_episodes
from llmdpd_torchrl.modules import NetworkConfig, make_networks
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.prompts import load_text_prompts
from llmdpd_torchrl.trainers import find_checkpoint, resume
from llmdpd_torchrl.utils.errors import UserError
from llmdpd_torchrl.utils.files import write_checksums
from tests.reliability.entries import call
from tests.reliability.short_training import build

pytestmark = pytest.mark.integration

FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
#: Small numbers: a network of a billion neurons is no malformed input, and takes its time.
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 99)
    | st.floats(allow_nan=False, allow_infinity=False, width=16)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner,
                                                                max_size=3),
    max_leaves=5,
)  # fmt: skip


def refused_in_one_line(read):
    """Call ``read``; what it raises must be for the person at the keyboard."""
    message = "read"
    try:
        read()
    except UserError as error:
        message = str(error)
    assert message
    assert "\n" not in message


def replaced(document, data):
    """A JSON document in which one value, somewhere, is another."""
    document = copy.deepcopy(document)
    inner = document
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        key = data.draw(st.sampled_from(keys))
        deeper = isinstance(inner[key], (dict, list)) and inner[key]
        if not deeper or data.draw(st.booleans()):
            inner[key] = data.draw(ANYTHING)
            return document
        inner = inner[key]


@pytest.fixture
def policy_folder(tmp_path):
    config = NetworkConfig(prompt="both", conditioning="retrieved", text_dim=8, hidden=[8])
    policy = LLMDPDPolicy.from_networks(config, make_networks(config))
    policy.save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


@FUZZ
@given(data=st.data())
def test_descriptions_of_policies(policy_folder, data):
    path = policy_folder / "config.json"
    whole = path.read_text()
    path.write_text(json.dumps(replaced(json.loads(whole), data)))
    refused_in_one_line(lambda: LLMDPDPolicy.from_pretrained(policy_folder))
    path.write_text(whole)


@FUZZ
@given(data=st.data())
def test_manifests_of_datasets(dataset, tmp_path, data):
    dataset.manifest.write(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(replaced(json.loads(path.read_text()), data)))
    refused_in_one_line(lambda: Manifest.read(tmp_path))


@FUZZ
@given(content=st.binary(max_size=300))
def test_any_bytes_as_any_file(policy_folder, tmp_path, content):
    for name, read in (
        ("manifest.json", Manifest.read),
        ("config.json", LLMDPDPolicy.from_pretrained),
    ):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        refused_in_one_line(lambda read=read, folder=folder: read(folder))
    (tmp_path / "prompts.yaml").write_bytes(content)
    refused_in_one_line(lambda: load_text_prompts(tmp_path / "prompts.yaml"))
    whole = (policy_folder / "model.safetensors").read_bytes()
    (policy_folder / "model.safetensors").write_bytes(content)
    refused_in_one_line(lambda: LLMDPDPolicy.from_pretrained(policy_folder))
    (policy_folder / "model.safetensors").write_bytes(whole)


@FUZZ
@given(
    content=ANYTHING,
    parts=st.lists(
        st.sampled_from(
            ["tasks:", "\n", "  ", "- ", "a: b", "&x", "*x", "!!int", "{", "]", "'", "#"]
        )
    ),
)
def test_yaml_of_prompts(tmp_path, content, parts):
    path = tmp_path / "prompts.yaml"
    for text in (yaml.safe_dump({"tasks": content}), "".join(parts)):
        path.write_text(text)
        refused_in_one_line(lambda: load_text_prompts(path))


@FUZZ
@given(places=st.lists(st.tuples(st.integers(0, 2047), st.integers(0, 255)), min_size=1))
def test_headers_of_hdf5(tmp_path, places):
    path = tmp_path / "data.hdf5"
    with h5py.File(path, "w") as file:
        for key, width in (("observations", 3), ("next_observations", 3), ("actions", 2)):
            file[key] = np.zeros((6, width), np.float32)
        file["rewards"] = np.zeros(6, np.float32)
        for key in ("terminals", "timeouts"):
            file[key] = np.array([0, 0, 0, 0, 0, 1], bool)
    content = bytearray(path.read_bytes())
    for place, value in places:
        content[place] = value
    path.write_bytes(bytes(content))
    refused_in_one_line(lambda: load_episodes(path))


@FUZZ
@given(data=st.data())
def test_states_under_a_forged_manifest(uninterrupted, tmp_path, data):
    folder = tmp_path / "checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(uninterrupted / "checkpoints", folder)
    newest = sorted(path for path in folder.iterdir() if path.is_dir())[-1]
    names = ["manifest.json", *sorted(newest.glob("components/*/state.pt"))]
    path = newest / data.draw(st.sampled_from(names))
    if path.suffix == ".json":
        path.write_text(json.dumps(replaced(json.loads(path.read_text()), data)))
    else:
        torch.save(replaced(torch.load(path, weights_only=True), data), path)
    write_checksums(newest)

    def load():
        saved = find_checkpoint(folder)
        trainer, _ = build(tmp_path, updates=90, every=10, saved=saved)
        resume(trainer, saved)

    refused_in_one_line(load)


SETTINGS = (
    "seed", "prompt", "tasks.split", "data.episodes_per_task", "network.hidden", "loss.lmbda",
    "optim.batch_size", "trainer.log_every", "evaluation.control", "evaluation.every",
    "video.tasks",
    "network.critic_hidden", "loss.gamma", "loss.guidance", "loss.target_sampling_steps",
    "optim.learning_rate", "optim.max_grad_norm", "trainer.threads", "trainer.compile",
    "logger.kind",
    "trajectory_prompt.per_task", "trajectory_prompt.state_visible_prob",
    "network.diffusion_steps", "trajectory_prompt.length", "force", "until", "evaluation.seed",
)  # fmt: skip
VALUES = ("null", "-1", "0", "1.5", "true", "[]", "[x]", "text", "1e400", "''")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Settings of a run that ends soon where what is drawn is right, on data collected once."""
    folder = tmp_path_factory.mktemp("data")
    settings = ["preset=smoke", f"data.folder={folder}", "until=train", "trainer.total_updates=20"]
    assert call("train", settings).code == 0
    return settings


@FUZZ
@pytest.mark.slow  # a setting that is right is followed by its run
@given(setting=st.sampled_from(SETTINGS), value=st.sampled_from(VALUES))
def test_settings(small, setting, value):
    others = [item for item in small if not item.startswith(f"{setting}=")]
    outcome = call("train", [*others, f"{setting}={value}"])
    assert outcome.code == 0 or outcome.is_clear, outcome.text
