"""The losses on TorchRL's: each trains its own networks, on the same data and trainer."""

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from llmdpd_torchrl.baselines import ALGORITHMS
from llmdpd_torchrl.modules import NetworkConfig, make_networks
from llmdpd_torchrl.prompts import FrameSpec, RetrievalSpec
from llmdpd_torchrl.trainers import OfflineOptimizationStepper, OfflineTrainer, TargetUpdater

ONE_STEP = [name for name, algorithm in ALGORITHMS.items() if algorithm.has_encoder]
"""Those that read one state: of those that read sequences, see test_sequence_models.py."""
STATE = {
    "observation_fields": {"place": (0, 2)},
    "observation_keep": ("place",),
    "retrieval": RetrievalSpec(frames=(FrameSpec(values=("place",), weights=(None,)),)),
    "action_dim": 1,
}


def small(name: str) -> NetworkConfig:
    algorithm = ALGORITHMS[name]
    return NetworkConfig(
        prompt="none", actor=algorithm.actors[0], hidden=(32, 32), activation="silu", **STATE
    )


def bandit(rows: int = 512) -> TensorDict:
    """One step of random actions; the best is half of the first coordinate's sign."""
    generator = torch.Generator().manual_seed(0)
    observation = torch.rand(rows, 2, generator=generator) * 2 - 1
    action = torch.rand(rows, 1, generator=generator) * 2 - 1
    best = observation[:, :1].sign() / 2
    end = torch.ones(rows, 1, dtype=torch.bool)
    following = {"observation": observation, "reward": -((action - best) ** 2),
                 "done": end, "terminated": end}  # fmt: skip
    return TensorDict({"observation": observation, "action": action, "next": following}, [rows])


def make(name: str, **settings):
    torch.manual_seed(0)
    networks = make_networks(small(name))
    loss = ALGORITHMS[name].make_loss(networks, None, gamma=0.9, **settings)
    return networks, loss


def train(name: str, data: TensorDict, updates: int, **settings):
    networks, loss = make(name, **settings)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(len(data)), batch_size=128)
    buffer.extend(data)
    OfflineTrainer(
        loss,
        buffer,
        total_updates=updates,
        stepper=OfflineOptimizationStepper(loss, learning_rate=3e-3, total_updates=updates),
        target_updater=TargetUpdater(loss, ALGORITHMS[name].schedules),
        progress_bar=False,
    ).train()
    return networks


def act(networks, data: TensorDict) -> torch.Tensor:
    with torch.no_grad():
        return networks.actor(data.select("observation"))["action"]


@pytest.mark.parametrize("name", ONE_STEP)
def test_every_term_reaches_its_own_networks_only(name):
    """They are summed and differentiated once, which is right only then."""
    _, loss = make(name)
    losses = loss(bandit(64))
    assert set(losses.keys()) == set(loss.out_keys)
    assert all(value.numel() == 1 for value in losses.values())
    terms = [key for key in losses.keys() if key.startswith("loss_")]  # noqa: SIM118
    reached: dict[str, list[str]] = {}
    for term in terms:
        loss.zero_grad(set_to_none=True)
        if not losses[term].requires_grad:
            assert (name, term) == ("td3_bc", "loss_actor")
            continue
        losses[term].backward(retain_graph=True)
        for key, parameter in loss.named_parameters():
            if parameter.grad is not None and parameter.grad.abs().sum() > 0:
                reached.setdefault(key.partition("_params")[0], []).append(term)
    owners = {
        "actor_network": {"loss_actor"},
        "qvalue_network": {"loss_qvalue", "loss_cql"},
        "value_network": {"loss_value"},
        "log_alpha": {"loss_alpha"},
    }
    assert reached
    for network, found in reached.items():
        assert set(found) <= owners[network], network


@pytest.mark.parametrize("name", ONE_STEP)
def test_cloning_finds_the_mean_and_values_the_best(name):
    data = bandit()
    settings = {
        "llmdpd": {"lmbda": 1.0}, "diffusion_ql": {"lmbda": 1.0}, "td3_bc": {"alpha": 10.0},
        "iql": {"temperature": 30.0}, "cql": {"min_q_weight": 0.1, "cloning_updates": 50,
                                              "num_random": 2, "alpha_init": 0.01},
    }  # fmt: skip
    networks = train(name, data, 300, **settings.get(name, {}))
    chosen = act(networks, data)
    gain = float((chosen * data["observation"][:, :1].sign()).mean())
    if name in ("bc", "diffusion_bc"):
        assert abs(gain) < 0.1
    else:
        assert gain > 0.3


@pytest.mark.parametrize("name", [n for n in ONE_STEP if ALGORITHMS[n].has_critics])
@pytest.mark.parametrize("flag", [torch.uint8, torch.int64, torch.float32])
def test_numbers_and_flags_of_other_types_mean_the_same(name, flag):
    data = bandit(16)
    data["next", "terminated"] = torch.arange(16).unsqueeze(-1) % 2 == 0
    other = data.clone().apply(lambda v: v.double() if v.is_floating_point() else v.to(flag))
    found = []
    for batch in (data, other):
        _, loss = make(name)
        torch.manual_seed(1)
        found.append(loss(batch)["loss_qvalue"].mean())
        assert batch["td_error"].isfinite().all()
    assert torch.allclose(*found, rtol=1e-4)


def test_the_actor_of_td3_has_every_second_turn():
    _, loss = make("td3_bc")
    turns = [loss(bandit(8))["loss_actor"].requires_grad for _ in range(4)]
    assert turns == [False, True, False, True]
    assert loss.state_dict()["batches"] == 4


def test_cql_clones_first():
    _, loss = make("cql", cloning_updates=1)
    data = bandit(8)
    first = loss(data)
    loss.zero_grad()
    first["loss_actor"].backward()
    assert loss.state_dict()["batches"] == 1
    torch.manual_seed(1)
    second = loss(data)["loss_actor"]
    torch.manual_seed(1)
    loss.batches.zero_()
    assert not torch.equal(second, loss(data)["loss_actor"])


def test_cql_bears_actions_at_the_range_s_ends():
    _, loss = make("cql")
    data = bandit(8)
    data["action"] = data["action"].sign()
    losses = loss(data)
    assert all(value.isfinite().all() for value in losses.values())


def test_cloning_reads_a_prompt():
    config = NetworkConfig(prompt="text", actor="deterministic", hidden=(8,), text_dim=6, **STATE)
    torch.manual_seed(0)
    networks = make_networks(config)
    from llmdpd_torchrl.modules import PromptNetwork
    from llmdpd_torchrl.prompts import PromptTables

    prompt = PromptNetwork(networks.encoder, PromptTables(torch.randn(3, 6)))
    loss = ALGORITHMS["bc"].make_loss(networks, prompt, gamma=0.9)
    data = bandit(4)
    data["prompt", "text_index"] = torch.tensor([[0], [1], [2], [0]])
    loss(data)["loss_actor"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in networks.encoder.parameters())


def test_the_conservative_term_is_the_paper_s():
    """Written out with loops, on the same draws."""
    networks, loss = make("cql", num_random=3, min_q_weight=2.0, temperature=0.5)
    data = bandit(4)
    data["next", "observation"] = data["observation"] + 0.5
    drawn: list[tuple[torch.Tensor, torch.Tensor]] = []
    own = loss._sample

    def noted(states):
        drawn.append(own(states))
        return drawn[-1]

    loss._sample = noted
    loss.q_loss(data)
    torch.manual_seed(1)
    term, _ = loss.cql_loss(data)
    (here, log_here), (following, log_next) = drawn
    torch.manual_seed(1)
    own(data), own(data)
    uniform = torch.empty_like(here).uniform_(-1.0, 1.0)
    expected = 0.0
    for critic in networks.qvalues:
        for row in range(4):
            values = []
            for sample in range(3):
                for action, log in (
                    (uniform[sample, row], -torch.tensor(2.0).log()),
                    (here[sample, row], log_here[sample, row]),
                    (following[sample, row], log_next[sample, row]),
                ):
                    told = TensorDict({"observation": data["observation"][row], "action": action})
                    values.append(critic(told)["state_action_value"].squeeze() - log)
            above = 0.5 * torch.logsumexp(torch.stack(values) / 0.5, 0)
            q = critic(data[row].select("observation", "action"))["state_action_value"].squeeze()
            expected = expected + 2.0 * (above - q) / 4
    torch.testing.assert_close(term, expected)


def test_cloning_imitates_the_expert_s_action_where_it_is_told_to():
    torch.manual_seed(0)
    loss = ALGORITHMS["bc"].make_loss(make_networks(small("bc")), None, gamma=0.0)
    batch = bandit()
    wanted = batch["observation"][:, :1] / 2
    expected = loss(batch.clone().set("action", wanted))["bc"]
    loss.set_keys(expert_action="expert_action")
    batch["expert_action"] = wanted
    assert torch.equal(loss(batch)["bc"], expected)
    assert not torch.equal(batch["action"], wanted)


def test_losses_of_torchrl_other_than_cloning_take_executed_actions_only():
    able = {name for name, algorithm in ALGORITHMS.items() if algorithm.imitates_labels}
    assert {*ALGORITHMS} - able == {"td3_bc", "iql", "cql"}
