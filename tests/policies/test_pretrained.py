import json
import pickle
import types

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub import errors as hub_errors
from safetensors.torch import load_file, save_file
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.envs import ExplorationType, set_exploration_type

from llmdpd_torchrl.modules import DiffusionActor
from llmdpd_torchrl.modules.build import make_networks
from llmdpd_torchrl.modules.config import NetworkConfig
from llmdpd_torchrl.policies.policy import LLMDPDPolicy
from llmdpd_torchrl.utils.errors import ConfigError, DamagedError, DataError
from llmdpd_torchrl.utils.files import file_sha256

DIFFUSION = ("retrieved", "pooled")
"""How the method's own actor is told; of those that read sequences, see test_sequence.py."""
BEFORE_6 = {
    4: {"frame": {"unit": 0.1}, "lookaheads": [3], "around_prompt": True, "least_share": 0.75},
    5: {
        "frame": None,
        "lookaheads": [3],
        "residual_on_retrieved": True,
        "min_base_fraction": 0.75,
    },
}
"""How earlier format versions described the retrieval, in ``network``."""
SMALL = {
    "hidden": [16],
    "text_dim": 6,
    "trajectory_length": 16,
    "trajectory_width": 8,
    "trajectory_heads": 2,
}


def make_policy(**changes):
    config = NetworkConfig(**{**SMALL, "trained_task_ids": [1], **changes})
    networks = make_networks(config, observations=torch.randn(50, 39))
    return LLMDPDPolicy.from_networks(config, networks), networks


@pytest.mark.parametrize("conditioning", DIFFUSION)
def test_a_saved_policy_acts_like_the_original(tmp_path, conditioning):
    policy, _ = make_policy(conditioning=conditioning)
    policy.save_pretrained(tmp_path)
    loaded = LLMDPDPolicy.from_pretrained(tmp_path)
    assert loaded.info == policy.info
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    width = policy.encoder.embedding_dim
    dims = {
        "observation": 39,
        "retrieved_context": NetworkConfig().context_layout.width,
        "prompt_embedding": width,
    }
    state = TensorDict({key: torch.randn(4, size) for key, size in dims.items()}, [4])
    state["prompt", "observation_gate"] = torch.ones(4, 1)
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        expected = policy.actor(state.clone())["action"]
        assert torch.equal(loaded.actor(state.clone())["action"], expected)


def with_library(folder, **changes):
    steps = {"observation": torch.rand(9, 39), "action": torch.rand(9, 4)}
    steps |= {"next": {"reward": torch.rand(9, 1)}} | changes
    policy, _ = make_policy()
    policy.library = {1: TensorDict(steps, [9])}
    policy.save_pretrained(folder)
    return policy


def test_the_library_is_saved_beside_the_weights(tmp_path):
    policy = with_library(tmp_path)
    loaded = LLMDPDPolicy.from_pretrained(tmp_path)
    assert list(loaded.library) == [1]
    for key in ("observation", "action", ("next", "reward")):
        assert torch.equal(loaded.library[1][key], policy.library[1][key])
    assert list(loaded.without_state().library) == [1]


def test_a_wrong_library_is_named(tmp_path):
    with_library(tmp_path)
    path = tmp_path / "library.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(DamagedError, match=r"library\.safetensors: damaged"):
        LLMDPDPolicy.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"library\.safetensors: missing or damaged"):
        LLMDPDPolicy.from_pretrained(tmp_path)
    with_library(tmp_path, observation=torch.rand(9, 38))
    with pytest.raises(DataError, match=r"library\.safetensors: .*39"):
        LLMDPDPolicy.from_pretrained(tmp_path)


# --- parts of the user's own ------------------------------------------------------------------


class OwnDenoiser(torch.nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer = torch.nn.Linear(inputs, outputs)

    def forward(self, inputs):
        return self.layer(inputs)


def own_actor():
    torch.manual_seed(0)
    return DiffusionActor(4, score_network=OwnDenoiser(44, 4), in_keys=["observation"])


def plain_actor():
    torch.manual_seed(0)
    return TensorDictModule(torch.nn.Linear(39, 4), ["observation"], ["action"])


def other_activation():
    return make_networks(NetworkConfig(**SMALL, prompt="none", activation="relu")).actor


def other_prediction():
    return make_networks(NetworkConfig(**SMALL, prompt="none", prediction="v")).actor


def other_bounds():
    """The configuration's own actor, but for the range of its actions."""
    actor = make_networks(NetworkConfig(**SMALL, prompt="none")).actor
    actor.module.action_bounds = (-0.1, 0.1)
    return actor


@pytest.mark.parametrize(
    "make_actor", [own_actor, plain_actor, other_activation, other_prediction, other_bounds]
)
def test_an_actor_of_ones_own_is_saved_and_given_back(tmp_path, make_actor):
    config = NetworkConfig(**SMALL, prompt="none")
    policy = LLMDPDPolicy(config, make_actor(), None)
    policy.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"from_pretrained\(\.\.\., actor=\.\.\.\)"):
        LLMDPDPolicy.from_pretrained(tmp_path)
    actor = make_actor()
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.zero_()
    loaded = LLMDPDPolicy.from_pretrained(tmp_path, actor=actor)
    saved, found = policy.state_dict(), loaded.state_dict()
    assert saved.keys() == found.keys()
    assert all(torch.equal(saved[key], found[key]) for key in saved)
    assert "actor=..." in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("prompt", ["both", "none"])
@pytest.mark.parametrize("kind", ["diffusion", "deterministic", "gaussian", "tanh_gaussian"])
@pytest.mark.parametrize("conditioning", DIFFUSION)
def test_an_actor_of_the_configuration_is_not_ones_own(tmp_path, kind, conditioning, prompt):
    policy, _ = make_policy(actor=kind, conditioning=conditioning, prompt=prompt)
    policy.save_pretrained(tmp_path)
    LLMDPDPolicy.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["own_modules"] == []


def test_an_actor_that_does_not_take_the_weights_is_refused(tmp_path):
    LLMDPDPolicy(NetworkConfig(**SMALL, prompt="none"), own_actor(), None).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="asks for"):
        LLMDPDPolicy.from_pretrained(tmp_path, actor=plain_actor())


def test_an_encoder_that_could_not_be_loaded_is_not_saved(tmp_path):
    policy, _ = make_policy(prompt="text")
    _, other = make_policy(prompt="text", activation="relu")
    mixed = LLMDPDPolicy(policy.config, policy.actor, other.encoder)
    with pytest.raises(ConfigError, match="prompt encoder is not the one"):
        mixed.save_pretrained(tmp_path / "policy")
    assert not (tmp_path / "policy").exists()


def damage_json(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_damage_is_named(tmp_path):
    policy, _ = make_policy()
    with pytest.raises(DataError, match=r"config\.json is missing"):
        LLMDPDPolicy.from_pretrained(tmp_path)
    policy.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(DamagedError, match=r"model\.safetensors: damaged"):
        LLMDPDPolicy.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(DataError, match=r"model\.safetensors: missing"):
        LLMDPDPolicy.from_pretrained(tmp_path)
    weights.write_bytes(whole)
    state = load_file(weights)
    name = sorted(state)[0]
    save_file({key: value for key, value in state.items() if key != name}, weights)
    digest = json.loads((tmp_path / "config.json").read_text())["weights"]
    damage_json(tmp_path, weights={**digest, "sha256": file_sha256(weights)})
    with pytest.raises(DataError, match=f"{name} is nothing"):
        LLMDPDPolicy.from_pretrained(tmp_path)
    damage_json(tmp_path, network={"prompt": "both", "unheard": 1})
    with pytest.raises(DataError, match="unheard"):
        LLMDPDPolicy.from_pretrained(tmp_path)
    damage_json(tmp_path, format_version=99)
    with pytest.raises(DataError, match="format_version is 99"):
        LLMDPDPolicy.from_pretrained(tmp_path)
    damage_json(tmp_path, format="else")
    with pytest.raises(DataError, match="not a file of format"):
        LLMDPDPolicy.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        LLMDPDPolicy.from_pretrained(tmp_path)


# --- what else is in the folder --------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    policy, _ = make_policy(prompt="text")
    policy.info.update(task_table=["a", "b"], trained_tasks=["a"], text_encoder="smollm2")
    policy.save_pretrained(tmp_path / "policy")
    return policy, tmp_path / "policy"


def act(policy, dtype=torch.float32):
    torch.manual_seed(0)
    state = {
        "observation": torch.randn(4, 39).to(dtype),
        "prompt_embedding": torch.randn(4, policy.encoder.embedding_dim).to(dtype),
    }
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        return policy.actor(TensorDict(state, [4]))["action"]


def test_everything_that_its_user_needs_is_in_the_description(saved):
    _, folder = saved
    description = json.loads((folder / "config.json").read_text())
    assert description["observation_layout"]["size"] == 39
    assert description["info"]["task_table"] == ["a", "b"]
    assert {"llmdpd_torchrl", "torch", "torchrl"} <= set(description["versions"])
    assert description["weights"]["sha256"] == file_sha256(folder / "model.safetensors")
    card = (folder / "README.md").read_text()
    assert ModelCard.load(folder / "README.md").data.library_name == "llmdpd_torchrl"
    for part in ("| trained tasks | a |", "smollm2", description["weights"]["sha256"]):
        assert part in card


def test_a_card_written_by_hand_stays(saved):
    policy, folder = saved
    policy.info["updates"] = 7
    policy.save_pretrained(folder)
    assert "| updates | 7 |" in (folder / "README.md").read_text()
    (folder / "README.md").write_text("mine")
    policy.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 0.2), (torch.float16, 0.05)]
)
def test_another_precision_acts_alike(saved, dtype, tolerance):
    policy, folder = saved
    loaded = LLMDPDPolicy.from_pretrained(folder, dtype=dtype)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    found = act(loaded, dtype)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), act(policy), atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", ["x.pickle", "pytorch_model.bin", "a/other.pickle", "state.pt"])
def test_a_planted_pickle_is_refused_before_anything_is_read(saved, monkeypatch, name):
    _, folder = saved
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps("anything"))
    monkeypatch.setattr("llmdpd_torchrl.policies.pretrained.read_document", None)
    with pytest.raises(DamagedError, match=rf"{path.name}: a file of this kind"):
        LLMDPDPolicy.from_pretrained(folder)


def test_what_git_and_the_hub_put_there_is_passed_over(saved):
    _, folder = saved
    for name in (".git/objects/ab", ".cache/huggingface/x.metadata", ".gitattributes", "a/b.mp4"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (folder / "linked.safetensors").symlink_to(folder / "model.safetensors")
    LLMDPDPolicy.from_pretrained(folder)


def test_observations_of_another_size_are_refused(saved):
    policy, _ = saved
    with pytest.raises(DataError, match="has 40 entries, the network reads 39"):
        policy.actor(observation=torch.zeros(2, 40), prompt_embedding=torch.zeros(2, 32))


@pytest.mark.parametrize(
    "network",
    [
        None,
        [],
        {"hidden": "wide"},
        {"hidden": [0]},
        {"hidden": [1.5]},
        {"observation_fields": {"hand": "x"}},
        {"observation_fields": []},
        {"observation_differences": [["hand"]]},
        {"retrieval": {"frames": [{"unheard": 1}]}},
        {"text_dropout": "often"},
        {"diffusion_steps": "five"},
        {"action_dim": -1},
    ],
)
def test_a_malformed_description_ends_in_one_line(saved, network):
    _, folder = saved
    if isinstance(network, dict):
        network = {**json.loads((folder / "config.json").read_text())["network"], **network}
    damage_json(folder, network=network)
    with pytest.raises(DataError, match=r"config\.json: ") as caught:
        LLMDPDPolicy.from_pretrained(folder)
    assert "\n" not in str(caught.value)


# --- other formats ---------------------------------------------------------------------------


def as_version(folder, version):
    """Rewrite a saved policy as an earlier format version had it."""
    path = folder / "config.json"
    description = json.loads(path.read_text()) | {"format_version": version}
    network = description["network"]
    for name in ("retrieval", "max_residual"):
        del network[name]
    network |= BEFORE_6[version]
    if version == 4:
        path.unlink()
        path = folder / "policy.json"
        description["info"]["trained_task_ids"] = network.pop("trained_task_ids")
        weights = (folder / "model.safetensors").rename(folder / "policy.safetensors")
        description["weights"]["file"] = weights.name
    path.write_text(json.dumps(description))
    return path


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize(
    "network",
    [
        {"prompt": "text", "prediction": "epsilon"},
        {"prompt": "both", "conditioning": "pooled", "prediction": "v"},
    ],
)
def test_a_policy_of_an_earlier_format_acts_as_it_did(tmp_path, version, network):
    policy, _ = make_policy(**network)
    policy.save_pretrained(tmp_path)
    as_version(tmp_path, version)
    assert LLMDPDPolicy.is_saved(tmp_path)
    loaded = LLMDPDPolicy.from_pretrained(tmp_path)
    assert torch.equal(act(loaded), act(policy))
    assert loaded.config.trained_task_ids == (1,)
    assert loaded.config.prediction == network["prediction"]
    loaded.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again["format_version"] == 6


@pytest.mark.parametrize("prompt", ["both", "trajectory"])
@pytest.mark.parametrize("version", [4, 5])
def test_one_of_an_earlier_format_that_retrieves_is_refused_in_one_line(tmp_path, version, prompt):
    policy, _ = make_policy(prompt=prompt)
    policy.save_pretrained(tmp_path)
    path = as_version(tmp_path, version)
    with pytest.raises(DataError, match=f"format_version is {version}, .*; train it aga") as caught:
        LLMDPDPolicy.from_pretrained(tmp_path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_older_formats_are_refused_in_one_line(saved):
    _, folder = saved
    as_version(folder, 4)
    description = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(description | {"format_version": 3}))
    with pytest.raises(DataError, match="format_version is 3") as caught:
        LLMDPDPolicy.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_whether_a_folder_holds_a_policy(saved, tmp_path):
    assert LLMDPDPolicy.is_saved(saved[1])
    assert not LLMDPDPolicy.is_saved(tmp_path)


def test_weights_are_float32_unless_told_otherwise(saved):
    _, folder = saved
    torch.set_default_dtype(torch.float64)
    try:
        loaded = LLMDPDPolicy.from_pretrained(folder)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}


@pytest.mark.gpu
def test_everything_is_loaded_onto_one_device(saved):
    loaded = LLMDPDPolicy.from_pretrained(saved[1], device="cuda")
    assert {tensor.device.type for tensor in loaded.state_dict().values()} == {"cuda"}


def test_a_save_leaves_the_random_numbers_of_a_training_alone(saved):
    policy, folder = saved
    state = torch.get_rng_state()
    policy.save_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), state)


# --- the Hub ---------------------------------------------------------------------------------


def test_a_policy_comes_from_the_hub(saved, monkeypatch, tmp_path):
    _, folder = saved
    asked = {}

    def snapshot_download(repository, **options):
        asked.update(options, repository=repository)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    policy = LLMDPDPolicy.from_pretrained("someone/policy-1.0", revision="v1")
    assert policy.info["task_table"] == ["a", "b"]
    assert asked["repository"] == "someone/policy-1.0"
    assert asked["revision"] == "v1"
    assert all(not name.endswith((".pickle", ".bin", ".pt")) for name in asked["allow_patterns"])


def test_a_folder_goes_before_the_hub(saved, monkeypatch, tmp_path):
    _, folder = saved
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    folder.rename(tmp_path / "a" / "b")
    LLMDPDPolicy.from_pretrained("a/b")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (hub_errors.OfflineModeIsEnabled("x"), "HF_HUB_OFFLINE is set"),
        (hub_errors.LocalEntryNotFoundError("x"), "not in the cache"),
        (ConnectionError("x"), "cannot be reached"),
        (ValueError("first\nsecond"), "first"),
    ],
)
def test_what_the_hub_says_is_one_line(monkeypatch, tmp_path, error, reason):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"no folder outputs/mine.*{reason}") as caught:
        LLMDPDPolicy.from_pretrained("outputs/mine")
    assert "\n" not in str(caught.value)


def test_a_policy_is_published_with_its_card_and_nothing_else(saved, hub):
    policy, folder = saved
    (folder / "secret.csv").write_text("")
    assert policy.push_to_hub("someone/policy", folder) == "https://hub/commit"
    assert hub["create"] == ("someone/policy", {"private": True, "exist_ok": True})
    expected = ["config.json", "model.safetensors", "library.safetensors", "README.md"]
    assert hub["upload"]["allow_patterns"] == expected


@pytest.mark.parametrize("name", ["policy", "a/b/c", "a b/c", "../x", "/x", "a/", "a/b..c"])
def test_what_is_no_repository_is_refused_before_anything_is_sent(saved, hub, name):
    policy, folder = saved
    with pytest.raises(ConfigError, match=r"is no repository of the Hub .*give owner/name"):
        policy.push_to_hub(name, folder)
    assert not hub


def test_without_a_token_the_login_is_named(saved, hub, monkeypatch):
    policy, folder = saved
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match="`hf auth login`, or set HF_TOKEN"):
        policy.push_to_hub("someone/policy", folder)
    assert not hub


def refusal(status):
    response = types.SimpleNamespace(status_code=status, headers={}, request=None)
    return hub_errors.HfHubHTTPError("no\nmore", response=response)


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (hub_errors.OfflineModeIsEnabled("x"), ConfigError, "HF_HUB_OFFLINE is set"),
        (refusal(403), ConfigError, "may not write there .*HF_TOKEN"),
        (refusal(500), DataError, "no"),
        (ConnectionError("x"), DataError, "cannot be reached"),
    ],
)
def test_a_push_that_fails_says_why_in_one_line(saved, hub, monkeypatch, error, kind, reason):
    policy, folder = saved

    def fail(*args, **options):
        raise error

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", fail)
    with pytest.raises(kind, match=f"cannot publish .* as someone/policy: .*{reason}") as caught:
        policy.push_to_hub("someone/policy", folder)
    assert "\n" not in str(caught.value)
