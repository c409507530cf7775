"""Networks from a config, and actors that read sequences: what they read and what they do not."""

import math
import subprocess
import sys

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from llmdpd_torchrl.modules import (
    DiffusionActor,
    NetworkConfig,
    make_networks,
)
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.utils.errors import ConfigError, DataError

L, H, F, OBS, A = 4, 5, 6, 3, 2
KINDS = ("decision_transformer", "plan_diffusion")


def make(kind, seed=0, **sizes):
    torch.manual_seed(seed)
    config = NetworkConfig(
        prompt="trajectory",
        conditioning="sequence",
        actor=kind,
        observation_fields={"state": (0, OBS)},
        observation_keep=["state"],
        action_dim=A,
        trajectory_length=L,
        diffusion_steps=8,
        prediction="x0",
        sequence={"history": H, "horizon": F, "width": 16, "layers": 2, **sizes},
    )
    actor = make_networks(config).actor.eval()
    if kind == "plan_diffusion":  # actions at the range's ends would hide what they depend on
        actor.module.score_network.head[-1].weight.data *= 0.1
    return actor


def steps(rows, count, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(width):
        return torch.rand(rows, count, width, generator=generator) * 2 - 1

    mask = torch.ones(rows, count, dtype=torch.bool)
    entries = {"observation": draw(OBS), "action": draw(A), "return_to_go": draw(1) * 1000}
    return {**entries, "mask": mask}


def state(rows=3, seed=0):
    parts = {"prompt": {"trajectory": steps(rows, L, seed)}, "history": steps(rows, H, seed + 1)}
    parts["history"]["action"][:, -1] = 0
    return TensorDict(parts, [rows])


@torch.no_grad()
def act(actor, data):
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        return actor(data.clone())["action"]


@pytest.mark.parametrize("kind", KINDS)
class TestBoth:
    def test_all_that_is_there_is_read(self, kind):
        actor, data = make(kind), state()
        before = act(actor, data)
        assert before.shape == (3, A)
        assert before.abs().max() <= 1
        for key in actor.in_keys:
            if key[-1] == "mask":
                continue
            changed = data.clone()
            changed[key] = changed[key] + 0.5 * (1000 if key[-1] == "return_to_go" else 1)
            assert not torch.allclose(act(actor, changed), before, atol=1e-6), key

    def test_what_is_masked_is_not_read(self, kind):
        actor, data = make(kind), state()
        for part, hidden in ((("prompt", "trajectory"), slice(2, None)), ("history", slice(0, 3))):
            masked = data.clone()
            masked[part]["mask"][:, hidden] = False
            before = act(actor, masked)
            for name in ("observation", "action", "return_to_go"):
                masked[part][name][:, hidden] = 7.0
            torch.testing.assert_close(act(actor, masked), before)

    def test_rows_do_not_read_one_another(self, kind):
        actor, data = make(kind), state(4)
        whole = act(actor, data)
        torch.testing.assert_close(act(actor, data[1:3]), whole[1:3])
        again = data.reshape(2, 2)
        torch.testing.assert_close(act(actor, again).reshape(4, A), whole)

    def test_it_is_saved_and_read(self, kind, tmp_path):
        config = NetworkConfig(
            prompt="trajectory", actor=kind, conditioning="sequence", trajectory_length=L,
            observation_fields={"state": (0, OBS)}, observation_keep=("state",), action_dim=A,
            retrieval={"frames": [{"values": ("state",), "weights": (None,)}]}, diffusion_steps=8,
            sequence={"history": H, "horizon": F, "width": 16, "layers": 1},
        )  # fmt: skip
        networks = make_networks(config, observations=torch.randn(9, OBS))
        policy = LLMDPDPolicy.from_networks(config, networks)
        policy.actor.eval()
        policy.save_pretrained(tmp_path)
        loaded = LLMDPDPolicy.from_pretrained(tmp_path)
        assert loaded.config.sequence == config.sequence
        assert torch.equal(act(loaded.actor, state()), act(policy.actor, state()))
        with pytest.raises(ConfigError, match="environment_transforms"):
            policy.prompt(trajectories=())


def test_a_decision_transformer_cannot_see_ahead():
    actor, data = make("decision_transformer"), state()
    actions = actor.actions(data)
    later = data.clone()
    later["history", "action"][:, 2] += 1.0  # the action of step 2, and all of the steps after it
    for name in ("observation", "return_to_go"):
        later["history", name][:, 3:] += 1.0
    changed = actor.actions(later)
    torch.testing.assert_close(changed[:, :3], actions[:, :3])
    assert not torch.allclose(changed[:, 3:], actions[:, 3:])


def test_dropout_is_for_training():
    actor, data = make("decision_transformer", dropout=0.5), state()
    assert torch.equal(act(actor, data), act(actor, data))
    actor.train()
    assert torch.equal(act(actor, data), act(actor, data))
    assert actor.training
    assert not torch.equal(actor.actions(data), actor.actions(data))
    calm = make("decision_transformer").train()
    assert torch.equal(calm.actions(data), calm.actions(data))


def test_the_planner_s_prepared_pass_is_its_plain_one():
    actor = make("plan_diffusion", guidance=1.0)
    denoiser = actor.module.score_network
    data = state()
    condition = actor.module.condition(*(data[key] for key in actor.in_keys))
    noisy = torch.randn(3, F * A)
    prepared = denoiser.precondition(condition, [5, 2])
    for place, step in enumerate([5, 2]):
        plain = actor.module.denoise(noisy, condition, step)
        torch.testing.assert_close(denoiser(noisy, prepared[place]), plain)


def test_guidance_is_away_from_no_return():
    plain, guided = make("plan_diffusion", guidance=1.0), make("plan_diffusion", guidance=3.0)
    data = state()
    condition = plain.module.condition(*(data[key] for key in plain.in_keys))
    noisy = torch.randn(3, F * A)
    untold = plain.module.score_network.hide_return(condition, torch.ones(3, dtype=torch.bool))
    told, untold = (plain.module.denoise(noisy, part, 4) for part in (condition, untold))
    assert not torch.allclose(told, untold)
    [prepared] = guided.module.score_network.precondition(condition, [4])
    torch.testing.assert_close(
        guided.module.score_network(noisy, prepared), untold + 3.0 * (told - untold)
    )


def test_plans_are_drawn_with_the_generator():
    actor, data = make("plan_diffusion"), state()

    def drawn(seed):
        with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
            generator = torch.Generator().manual_seed(seed)
            return actor(data.clone(), generator=generator)["action"]

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


def test_mistakes():
    with pytest.raises(ConfigError, match=r"network\.actor is 'gpt'"):
        make("gpt")
    actor, data = make("plan_diffusion"), state()
    data["history", "observation"] = torch.zeros(3, H, OBS + 1)
    with pytest.raises(DataError, match="the network reads 3"):
        actor(data)


def test_an_absent_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"llmdpd_torchrl\[llm\]"):
        make("decision_transformer")


def test_transformers_is_not_imported_before_it_is_needed():
    code = "import sys, llmdpd_torchrl.modules; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_positions_are_told_apart():
    """The plan's steps and the history's: without positions they would be sets."""
    actor, data = make("plan_diffusion"), state()
    turned = data.clone()
    turned["history", "observation"] = turned["history", "observation"].flip(1)
    assert not torch.allclose(act(actor, turned), act(actor, data), atol=1e-6)
    denoiser = actor.module.score_network
    assert math.isclose(float(denoiser.position.detach().std()), 0.02, rel_tol=0.5)


@pytest.mark.parametrize(
    "options",
    [{"prompt": "none"}, {"prompt": "text"}, {"prompt": "both", "conditioning": "pooled"}],
)
def test_only_an_actor_that_retrieves_reads_the_relative_frames(options):
    common = {
        "hidden": [8], "observation_fields": {"state": (0, 3)}, "observation_keep": ["state"],
        "action_dim": 1, "text_dim": 4,
    }  # fmt: skip
    for retrieval in ({}, {"retrieval": None}):
        make_networks(NetworkConfig(**common, **retrieval, **options))
    with pytest.raises(ConfigError, match="'hand_position', which the observation lacks"):
        make_networks(NetworkConfig(**common))


def test_networks_are_float32_whatever_the_default_type():
    configs = [
        NetworkConfig(hidden=[8]),
        NetworkConfig(prompt="none", actor="gaussian", hidden=[8]),
        NetworkConfig(
            prompt="trajectory",
            actor="plan_diffusion",
            conditioning="sequence",
            sequence={"width": 8, "layers": 1},
        ),
    ]
    torch.set_default_dtype(torch.float64)
    try:
        built = [make_networks(config) for config in configs]
        alone = DiffusionActor(2, 3, in_keys=["observation"], hidden=(8,))
    finally:
        torch.set_default_dtype(torch.float32)
    modules = [
        alone,
        *(m for n in built for m in (n.encoder, n.actor, *n.qvalues) if m is not None),
    ]
    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers()) if t.is_floating_point()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    expected = DiffusionActor(2, 3, in_keys=["observation"], hidden=(8,)).module
    assert torch.equal(alone.module.deterministic_latent, expected.deterministic_latent)
    assert alone.module.schedule.alpha_bar == expected.schedule.alpha_bar


def test_observations_of_any_number_type_are_read():
    actor = make_networks(NetworkConfig(prompt="none", hidden=[8])).actor
    observation = torch.randint(-3, 3, (4, 39))
    actions = [
        act(actor, TensorDict({"observation": observation.to(dtype)}, [4]))
        for dtype in (torch.float32, torch.float64, torch.int64)
    ]
    assert torch.equal(actions[0], actions[1])
    assert torch.equal(actions[0], actions[2])
