"""Losses of policies that read sequences: what counts, and that they learn."""

import pytest
import torch
from tensordict import TensorDict

from llmdpd_torchrl.baselines import ALGORITHMS, MTDiff, PromptDT
from llmdpd_torchrl.modules import NetworkConfig, make_networks
from llmdpd_torchrl.trainers import OfflineOptimizationStepper
from llmdpd_torchrl.utils.errors import ConfigError, DataError

L, H, F, OBS, A = 3, 4, 5, 2, 1
NAMES = {"prompt_dt": "decision_transformer", "mtdiff": "plan_diffusion"}


def make_actor(kind, **options):
    config = NetworkConfig(
        prompt="trajectory",
        conditioning="sequence",
        actor=kind,
        observation_fields={"state": (0, OBS)},
        observation_keep=["state"],
        action_dim=A,
        trajectory_length=L,
        **options,
    )
    return make_networks(config).actor


def make(name, seed=0, **settings):
    torch.manual_seed(seed)
    sizes = {"history": H, "horizon": F, "width": 16, "layers": 2, "return_scale": 1.0}
    actor = make_actor(NAMES[name], prediction="v", sequence=sizes)
    return actor, ALGORITHMS[name].loss(actor, **settings)


def batch(rows=6, seed=0):
    """Actions are the first coordinate of the prompt's first observation: its task."""
    generator = torch.Generator().manual_seed(seed)

    def steps(count):
        entries = {"observation": OBS, "return_to_go": 1}
        drawn = {
            key: torch.rand(rows, count, width, generator=generator) * 2 - 1
            for key, width in entries.items()
        }
        return {**drawn, "mask": torch.ones(rows, count, dtype=torch.bool)}

    prompt, history, future = steps(L), steps(H), steps(F)
    del future["observation"], future["return_to_go"]
    task = prompt["observation"][:, :1, :1]
    prompt["action"], future["action"] = task.repeat(1, L, 1), task.repeat(1, F, 1)
    history["action"] = task.repeat(1, H, 1)
    history["action"][:, -1] = 0
    parts = {"prompt": {"trajectory": prompt}, "history": history, "future": future}
    return TensorDict({**parts, "action": task[:, 0]}, [rows])


def labelled(data):
    """The batch with other actions to imitate than were executed."""
    for part in ("history", "future"):
        executed = data[part, "action"]
        wanted = torch.linspace(-1, 1, executed.numel()).view_as(executed)
        data[part, "expert_action"] = wanted
    return data.set("expert_action", data["history", "expert_action"][:, -1])


@pytest.mark.parametrize("name", NAMES)
class TestBoth:
    def test_one_loss_and_its_number(self, name):
        actor, loss = make(name)
        losses = loss(batch())
        assert set(losses.keys()) == {"loss_actor", "bc"} == set(loss.out_keys)
        assert not losses["bc"].requires_grad
        assert torch.equal(losses["bc"], losses["loss_actor"])
        losses["loss_actor"].backward()
        without = {n for n, p in actor.named_parameters() if p.grad is None}
        # GPT-2's table of words: a decision transformer has none.
        assert without <= {"module.transformer.wte.weight"}

    def test_actions_that_are_not_there_do_not_count(self, name):
        _, loss = make(name)
        data = batch()
        part = "history" if name == "prompt_dt" else "future"
        hidden = slice(0, 2) if name == "prompt_dt" else slice(3, None)
        data[part]["mask"][:, hidden] = False

        def value():
            torch.manual_seed(1)
            return loss(data)["loss_actor"]

        before = value()
        data[part]["action"][:, hidden] = 0.9
        if name == "prompt_dt":
            torch.testing.assert_close(value(), before)
        else:  # they are noised, so that others read them, but their own errors do not count
            assert 0.5 < float((value() / before).detach()) < 2.0
        data["action" if name == "prompt_dt" else ("future", "action")][:, :1] += 0.5
        assert not torch.allclose(value(), before)

    def test_reduction_and_weights(self, name):
        _, loss = make(name)
        _, rows = make(name, reduction="none")
        data = batch()
        torch.manual_seed(1)
        mean = loss(data)["loss_actor"]
        torch.manual_seed(1)
        each = rows(data)["loss_actor"]
        assert each.shape == (6,)
        torch.testing.assert_close(each.mean(), mean)

    def test_keys_and_dispatch(self, name):
        _, loss = make(name)
        data = batch()
        torch.manual_seed(1)
        expected = loss(data)["loss_actor"]
        flat = {"_".join(key) if isinstance(key, tuple) else key: data[key] for key in loss.in_keys}
        torch.manual_seed(1)
        assert torch.equal(loss(**flat)[0], expected)
        key = {"prompt_dt": "action", "mtdiff": "plan"}[name]
        loss.set_keys(**{key: "what_was_done"})
        with pytest.raises(DataError, match="'what_was_done'"):
            loss(data)
        data["what_was_done"] = data["action" if name == "prompt_dt" else ("future", "action")]
        torch.manual_seed(1)
        assert torch.equal(loss(data)["loss_actor"], expected)

    def test_labels_are_not_read_unless_they_are_asked_for(self, name):
        _, loss = make(name)
        torch.manual_seed(1)
        expected = loss(batch())["loss_actor"]
        torch.manual_seed(1)
        assert torch.equal(loss(labelled(batch()))["loss_actor"], expected)
        loss.set_keys(expert_action="expert_action")
        with pytest.raises(DataError, match="'expert_action'"):
            loss(batch())
        loss.set_keys(expert_action=None)
        torch.manual_seed(1)
        assert torch.equal(loss(batch())["loss_actor"], expected)

    def test_entries_are_cast(self, name):
        _, loss = make(name)
        data, double = batch(), batch().double()
        for part in ("prompt", "history", "future"):
            mask = ("prompt", "trajectory", "mask") if part == "prompt" else (part, "mask")
            double[mask] = data[mask]
        torch.manual_seed(1)
        expected = loss(data)["loss_actor"]
        torch.manual_seed(1)
        assert torch.equal(loss(double)["loss_actor"], expected)

    def test_state_goes_round(self, name):
        _, loss = make(name)
        _, other = make(name, seed=1)
        other.load_state_dict(loss.state_dict())
        torch.manual_seed(1)
        expected = loss(batch())["loss_actor"]
        torch.manual_seed(1)
        assert torch.equal(other(batch())["loss_actor"], expected)

    def test_the_prompt_s_task_is_learnt(self, name):
        """What is to be done is in the prompt only, and other tasks are asked for than were."""
        actor, loss = make(name)
        stepper = OfflineOptimizationStepper(loss, learning_rate=3e-3, total_updates=500)

        class Trainer:
            compute_loss = staticmethod(loss)

        for update in range(500):
            # Of the history nothing is told, or its actions would do.
            data = batch(64, seed=update + 1)
            data["history", "mask"][:, :-1] = False
            stepper.step(Trainer, data)
        data = batch(64)
        data["history", "mask"][:, :-1] = False
        with torch.no_grad():
            done = actor(data.exclude("action", "future"))["action"]
        error = (done - data["action"]).abs().mean()
        assert error < 0.5 * (data["action"] - data["action"].mean()).abs().mean()


def test_every_step_of_the_history_is_learnt():
    _, loss = make("prompt_dt", reduction="none")
    data = batch()
    for place in range(H):
        changed = data.clone()
        key = ("history", "action") if place < H - 1 else "action"
        row = changed[key][:, place] if place < H - 1 else changed[key]
        row += 10.0
        assert (loss(changed)["loss_actor"] > loss(data)["loss_actor"] + 10).all(), place


def test_labels_are_the_targets_of_a_history_that_holds_executed_actions():
    actor, loss = make("prompt_dt", reduction="none")
    loss.set_keys(expert_action="expert_action")
    data = labelled(batch())
    wanted = data["history", "expert_action"]  # the present one is at its end
    before = loss(data)["loss_actor"]
    torch.testing.assert_close(before, (actor.actions(data) - wanted).square().mean((-2, -1)))
    assert "action" not in loss.in_keys
    data["history", "action"][:, 0] += 1.0
    assert not torch.allclose(loss(data)["loss_actor"], before)


def test_labels_are_the_plan_that_is_denoised():
    _, loss = make("mtdiff")
    data = labelled(batch())
    plan = batch().set(("future", "action"), data["future", "expert_action"])
    torch.manual_seed(1)
    expected = loss(plan)["loss_actor"]
    loss.set_keys(expert_action="expert_action")
    torch.manual_seed(1)
    assert torch.equal(loss(data)["loss_actor"], expected)
    assert ("future", "action") not in loss.in_keys


def test_dropout_is_on_in_training():
    torch.manual_seed(0)
    sizes = {"history": H, "width": 16, "layers": 1, "dropout": 0.2}
    loss = PromptDT(make_actor("decision_transformer", sequence=sizes))
    data = batch()
    assert not torch.equal(loss(data)["bc"], loss(data)["bc"])


def test_the_return_is_hidden_now_and_then():
    torch.manual_seed(0)
    _, loss = make("mtdiff", return_dropout=0.5)
    loss(batch(64))["loss_actor"].backward()
    network = loss.actor_network_params
    score = network["module", "score_network"]
    assert score["no_return"].grad.abs().sum() > 0
    assert score["embed_return", "weight"].grad.abs().sum() > 0


def test_mistakes():
    actor, _ = make("mtdiff")
    with pytest.raises(TypeError, match="DecisionTransformerActor"):
        PromptDT(actor)
    with pytest.raises(TypeError, match="PlanDiffusionActor"):
        MTDiff(make("prompt_dt")[0])
    for dropout in (0.0, 1.0):
        with pytest.raises(ConfigError, match="return_dropout"):
            MTDiff(actor, return_dropout=dropout)
    with pytest.raises(ConfigError, match="reduction"):
        MTDiff(actor, reduction="median")


@pytest.mark.parametrize("name", NAMES)
def test_networks_are_made_by_configuration(name):
    config = NetworkConfig(
        prompt="trajectory", actor=NAMES[name], conditioning="sequence", trajectory_length=L
    )
    networks = make_networks(config)
    assert networks.encoder is None
    assert networks.qvalues == []
    loss = ALGORITHMS[name].make_loss(networks, None, gamma=0.9)
    assert isinstance(loss, ALGORITHMS[name].loss)
