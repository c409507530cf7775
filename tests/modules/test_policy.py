import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensordict import TensorDict
from torchrl.envs import ExplorationType, set_exploration_type

from llmdpd_torchrl.errors import ConfigError, DataError
from llmdpd_torchrl.modules.networks import CONDITIONINGS, PROMPTS, NetworkConfig, make_networks
from llmdpd_torchrl.modules.policy import LLMDPDPolicy

SMALL = {
    "hidden": [16],
    "text_dim": 6,
    "trajectory_length": 16,
    "trajectory_width": 8,
    "trajectory_heads": 2,
}


def make_policy(**changes):
    config = NetworkConfig(**{**SMALL, **changes})
    networks = make_networks(config, observations=torch.randn(50, 39))
    return LLMDPDPolicy.from_networks(config, networks, {"trained_task_ids": [1]}), networks


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_who_reads_what(prompt, conditioning):
    policy, networks = make_policy(prompt=prompt, conditioning=conditioning)
    trajectory, text = prompt in ("both", "trajectory"), prompt in ("both", "text")
    retrieves = trajectory and conditioning == "retrieved"
    embeds = text or (trajectory and not retrieves)
    for keys in (policy.actor.in_keys, networks.qvalues[0].in_keys):
        assert ("prompt_context" in keys) == retrieves
        assert ("prompt_embedding" in keys) == embeds
        assert "observation" in keys
    assert (policy.encoder is not None) == embeds


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_a_saved_policy_acts_like_the_original(tmp_path, conditioning):
    policy, _ = make_policy(conditioning=conditioning)
    policy.save_pretrained(tmp_path)
    loaded = LLMDPDPolicy.from_pretrained(tmp_path)
    assert loaded.info == policy.info
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.json", "policy.safetensors"]
    width = policy.encoder.embedding_dim
    dims = {
        "observation": 39,
        "prompt_context": NetworkConfig().context_parts["known"].stop,
        "prompt_embedding": width,
    }
    state = TensorDict({key: torch.randn(4, size) for key, size in dims.items()}, [4])
    state["prompt", "observation_gate"] = torch.ones(4, 1)
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        expected = policy.actor(state.clone())["action"]
        assert torch.equal(loaded.actor(state.clone())["action"], expected)


def damage_json(folder, **changes):
    path = folder / "policy.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_damage_is_named(tmp_path):
    policy, _ = make_policy()
    with pytest.raises(DataError, match=r"policy\.json is missing"):
        LLMDPDPolicy.from_pretrained(tmp_path)
    policy.save_pretrained(tmp_path)
    weights = tmp_path / "policy.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(DataError, match=r"policy\.safetensors: missing or damaged"):
        LLMDPDPolicy.from_pretrained(tmp_path)
    weights.write_bytes(whole)
    state = load_file(weights)
    name = sorted(state)[0]
    save_file({key: value for key, value in state.items() if key != name}, weights)
    with pytest.raises(DataError, match=f"{name} is nothing"):
        LLMDPDPolicy.from_pretrained(tmp_path)
    weights.write_bytes(whole)
    damage_json(tmp_path, network={"prompt": "both", "unheard": 1})
    with pytest.raises(DataError, match="unheard"):
        LLMDPDPolicy.from_pretrained(tmp_path)
    damage_json(tmp_path, format_version=99)
    with pytest.raises(DataError, match="format_version is 99"):
        LLMDPDPolicy.from_pretrained(tmp_path)
    damage_json(tmp_path, format="else")
    with pytest.raises(DataError, match="not a file of format"):
        LLMDPDPolicy.from_pretrained(tmp_path)
    (tmp_path / "policy.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        LLMDPDPolicy.from_pretrained(tmp_path)


def test_a_missing_table_is_named(bank):
    policy, _ = make_policy()
    with pytest.raises(ConfigError, match="give a text_table"):
        policy.check_tables(None, bank)
    with pytest.raises(ConfigError, match="give a bank"):
        policy.check_tables(torch.zeros(50, 6), None)
    policy, _ = make_policy(trajectory_length=17)
    with pytest.raises(ConfigError, match="have 16 steps, this policy was trained with 17"):
        policy.check_tables(torch.zeros(50, 6), bank)


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "all"},
        {"conditioning": "guessed"},
        {"hidden": []},
        {"diffusion_steps": 0},
        {"trajectory_width": 9},
        {"observation_keep": ["foot"]},
        {"activation": "cosh"},
    ],
)
def test_wrong_settings_end_in_one_line(changes):
    with pytest.raises(ConfigError) as caught:
        make_policy(**changes)
    assert "\n" not in str(caught.value)


def test_widths_that_do_not_fit_the_data():
    config = NetworkConfig(**SMALL)
    with pytest.raises(ConfigError, match="observations have 38 entries"):
        make_networks(config, observations=torch.randn(5, 38))
    with pytest.raises(ConfigError, match=r"embeddings are 7 wide, network\.text_dim is 6"):
        make_networks(config, text_embeddings=torch.randn(5, 7))
