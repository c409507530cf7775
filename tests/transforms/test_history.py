"""History and future: the same while acting and from the dataset, by sub-environment."""

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import Compose, EnvBase, SerialEnv, TransformedEnv
from torchrl.envs.utils import check_env_specs

from llmdpd_torchrl.data import OfflineDataset
from llmdpd_torchrl.data.recording import Recording
from llmdpd_torchrl.envs import MetaWorldEnv, MultiTaskEnv
from llmdpd_torchrl.transforms import HistoryTransform, TrajectoryPromptTransform
from llmdpd_torchrl.utils.errors import ConfigError, DataError

KEYS = ("observation", "action", "return_to_go", "mask")


class Drift(EnvBase):
    """A place that actions move; the reward is the place."""

    def __init__(self):
        super().__init__()
        self.observation_spec = Composite(observation=Unbounded((2,)))
        self.action_spec = Bounded(-1.0, 1.0, (2,))
        self.reward_spec = Unbounded((1,))

    def _reset(self, tensordict=None, **kwargs):
        return TensorDict({"observation": torch.ones(2)})

    def _step(self, tensordict):
        place = tensordict["observation"] + tensordict["action"]
        done = torch.zeros(1, dtype=torch.bool)
        state = {
            "observation": place,
            "reward": place[:1],
            "done": done,
            "terminated": done.clone(),
        }
        return TensorDict(state)

    def _set_seed(self, seed):
        return seed


class Replay:
    """Actions that were recorded, one after another."""

    def __init__(self, actions):
        self.actions = iter(actions)

    def __call__(self, tensordict: TensorDict) -> TensorDict:
        return tensordict.set("action", next(self.actions))


def recorded(rollouts):
    """A dataset of episodes that were played."""
    parts = TensorDict.cat(
        [rollout.select("observation", "action", "next") for rollout in rollouts]
    )
    ends = np.zeros(len(parts), bool)
    ends[np.cumsum([len(rollout) for rollout in rollouts]) - 1] = True
    return OfflineDataset.from_recordings(
        [
            Recording(
                name="drift",
                source="memory",
                observation=parts["observation"].numpy(),
                next_observation=parts["next", "observation"].numpy(),
                action=parts["action"].numpy(),
                reward=parts["next", "reward"].squeeze(-1).numpy(),
                terminated=np.zeros(len(parts), bool),
                truncated=ends,
            )
        ]
    )


def test_acting_and_the_dataset_say_the_same():
    torch.manual_seed(0)
    steps = (7, 3)
    dataset = recorded([Drift().rollout(count) for count in steps])
    for episode, count in enumerate(steps):
        played = dataset.trajectory(episode)
        target = float(dataset.trajectory_return[episode])
        env = TransformedEnv(Drift(), HistoryTransform(4, 2, 2, target_return=target))
        shown = env.rollout(count, Replay(played["action"]))
        batch = HistoryTransform(4, 2, 2, dataset=dataset)(played.clone())
        for key in KEYS:
            torch.testing.assert_close(shown["history", key], batch["history", key])
    assert batch["history", "mask"].sum(-1).tolist() == [1, 2, 3]


def test_the_future_ends_with_the_episode():
    torch.manual_seed(0)
    dataset = recorded([Drift().rollout(count) for count in (4, 2)])
    batch = HistoryTransform(1, 2, 2, horizon=3, dataset=dataset)(dataset.transitions.clone())
    assert batch["future", "mask"].sum(-1).tolist() == [3, 3, 2, 1, 2, 1]
    assert torch.equal(batch["future", "action"][:, 0], batch["action"])
    assert torch.equal(batch["future", "action"][1, 2], dataset.transitions["action"][3])
    assert (batch["future", "action"][3, 1:] == 0).all()


def test_a_replay_buffer_writes_it(dataset):
    transform = HistoryTransform(3, 39, 4, horizon=2, dataset=dataset)
    buffer = dataset.replay_buffer(5, transforms=[transform], seed=0)
    batch = buffer.sample()
    assert torch.equal(batch["history", "observation"][:, -1], batch["observation"])
    assert batch["future", "action"].shape == (5, 2, 4)
    assert not [key for key in buffer.state_dict() if "history" in str(key).lower()]
    first = dataset.trajectory(1)[:1]
    whole = dataset.trajectory(1)["next", "reward"].sum()
    torch.testing.assert_close(transform(first)["history", "return_to_go"][0, -1, 0], whole)


def test_labels_are_those_of_the_same_steps_and_replace_nothing(dataset):
    episode = dataset.trajectory(1)
    sizes = {"horizon": 2, "dataset": dataset}
    plain = HistoryTransform(3, 39, 4, **sizes)(episode.clone())
    batch = HistoryTransform(3, 39, 4, **sizes, labels=True)(episode.clone())
    executed, wanted = episode["action"], episode["expert_action"]
    assert not torch.equal(executed, wanted)
    assert torch.equal(batch["history", "expert_action"][4], wanted[2:5])
    assert torch.equal(batch["history", "action"][4, :2], executed[2:4])
    assert torch.equal(batch["future", "expert_action"][4], wanted[4:6])
    assert torch.equal(batch["future", "action"][4], executed[4:6])
    assert (batch["history", "expert_action"][0, :2] == 0).all()
    assert (batch["future", "expert_action"][-1, 1:] == 0).all()
    extra = {("history", "expert_action"), ("future", "expert_action")}
    assert {*batch.keys(True, True)} - {*plain.keys(True, True)} == extra
    assert (batch.exclude(*extra) == plain).all()


def test_specs_hold(bank):
    def env():
        return TransformedEnv(MetaWorldEnv("reach-v3", num_goals=2, max_steps=6), make())

    def make():
        return Compose(TrajectoryPromptTransform(bank, mode="tensor"), HistoryTransform(3, 39, 4))

    single = env()
    check_env_specs(single)
    asked = single.reset()
    shown = asked["prompt", "trajectory", "return_to_go"][0]
    assert torch.equal(asked["history", "return_to_go"][-1], shown)
    check_env_specs(SerialEnv(2, env))
    inside = SerialEnv(2, lambda: MetaWorldEnv("reach-v3", num_goals=2, max_steps=6))
    check_env_specs(TransformedEnv(inside, make()))


def test_sub_environments_are_reset_and_stand_still_one_by_one():
    def make(task):
        return MetaWorldEnv(task, num_goals=3, max_steps=50)

    base_env = MultiTaskEnv(make, ["reach-v3", "push-v3", "sweep-v3"])
    env = TransformedEnv(base_env, HistoryTransform(4, 39, 4, target_return=100.0))
    state = env.reset()
    moves = torch.tensor([True, True, True])
    for number in range(3):
        if number == 2:
            moves = torch.tensor([True, False, True])
        state["action"] = torch.full((3, 4), 0.1 * (number + 1))
        step = env.step(state.set("_step", moves))["next"]
        rewards = step["reward"]
        before, state = state, step.exclude("reward")
    assert state["history", "mask"].sum(-1).tolist() == [4, 3, 4]
    for key in KEYS:
        assert torch.equal(state["history", key][1], before["history", key][1])
    torch.testing.assert_close(
        state["history", "action"][0, :, 0], torch.tensor([0.1, 0.2, 0.3, 0])
    )
    gained = before["history", "return_to_go"] - state["history", "return_to_go"]
    torch.testing.assert_close(gained[0, -1], rewards[0])
    begins = torch.tensor([[False], [True], [False]])
    after = env.reset(state.clone().set("_reset", begins))
    assert after["history", "mask"].sum(-1).tolist() == [4, 1, 4]
    assert torch.equal(after["history", "observation"][1, -1], after["observation"][1])
    assert after["history", "return_to_go"][1].squeeze(-1).tolist() == [0, 0, 0, 100.0]
    assert torch.equal(after["history", "action"][0], state["history", "action"][0])
    env.close()


def test_what_it_refuses():
    with pytest.raises(ConfigError, match="at least 1"):
        HistoryTransform(0, 2, 2)
    with pytest.raises(ConfigError, match="give it the dataset"):
        HistoryTransform(1, 2, 2)(TensorDict({}, [3]))
    with pytest.raises(DataError, match="the dataset has no expert_action"):
        HistoryTransform(1, 2, 2, dataset=recorded([Drift().rollout(2)]), labels=True)
    with pytest.raises(DataError, match="set target_return"):
        TransformedEnv(Drift(), HistoryTransform(1, 2, 2)).reset()
