"""The prompt transforms on environments and replay buffers, after TorchRL's transform checks."""

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.envs import Compose, SerialEnv, TransformedEnv
from torchrl.envs.utils import check_env_specs

from llmdpd_torchrl.envs import MetaWorldEnv
from llmdpd_torchrl.prompts.retrieval import PromptRetrieval
from llmdpd_torchrl.prompts.retrieval_spec import METAWORLD_RETRIEVAL
from llmdpd_torchrl.prompts.tables import TrajectoryPromptBank
from llmdpd_torchrl.tasks import METAWORLD_OBSERVATION_LAYOUT, METAWORLD_TASKS
from llmdpd_torchrl.transforms import (
    AbsentPromptTransform,
    ObservationGateTransform,
    PromptEmbeddingTransform,
    RetrievedContextTransform,
    TextPromptTransform,
    TrajectoryPromptTransform,
)
from llmdpd_torchrl.utils.errors import PromptError

REACH = METAWORLD_TASKS.index("reach-v3")
TABLE = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))


class Head(torch.nn.Linear):
    """z [*, 3] of rows [*, 1] of the table."""

    def __init__(self):
        super().__init__(6, 3)

    def forward(self, row):
        return super().forward(TABLE[row.squeeze(-1)])


def make(name, bank):
    index = TrajectoryPromptTransform(bank)
    if name == "context":
        fields = METAWORLD_OBSERVATION_LAYOUT["fields"]
        return Compose(
            index, RetrievedContextTransform(PromptRetrieval(bank, METAWORLD_RETRIEVAL, fields))
        )
    if name == "embedding":
        network = TensorDictModule(Head(), [("prompt", "text_index")], ["z"])
        return Compose(TextPromptTransform(TABLE), PromptEmbeddingTransform(network, 3))
    return {
        "gate": lambda: Compose(index, ObservationGateTransform([REACH])),
        "absent": lambda: AbsentPromptTransform([("prompt", "trajectory_index")]),
    }[name]()


ALL = ["gate", "absent", "context", "embedding"]  # the prompts' own: see test_template.py


def reach():
    return MetaWorldEnv("reach-v3", num_goals=2, max_steps=6)


@pytest.mark.parametrize("name", ALL)
class TestSpecs:
    def test_single(self, name, bank):
        env = TransformedEnv(reach(), make(name, bank))
        check_env_specs(env)
        assert len(env.rollout(4)) == 4
        env.close()

    def test_inside_a_serial_env(self, name, bank):
        env = SerialEnv(2, lambda: TransformedEnv(reach(), make(name, bank)))
        check_env_specs(env)
        env.close()

    def test_around_a_serial_env(self, name, bank):
        env = TransformedEnv(SerialEnv(2, reach), make(name, bank))
        check_env_specs(env)
        env.close()


def test_an_episode_keeps_its_prompt_and_the_next_may_have_another(bank):
    torch.manual_seed(0)
    env = TransformedEnv(reach(), TrajectoryPromptTransform(bank))
    seen = set()
    for _ in range(12):
        rows = env.rollout(5)["prompt", "trajectory_index"].unique()
        assert len(rows) == 1
        seen.add(rows.item())
    assert seen == set(bank.rows_of(REACH).tolist())
    first = TransformedEnv(reach(), TrajectoryPromptTransform(bank, choice="first"))
    assert {first.reset()["prompt", "trajectory_index"].item() for _ in range(5)} == {
        bank.rows_of(REACH)[0].item()
    }


def test_a_partial_reset_leaves_the_others_alone(bank):
    env = TransformedEnv(SerialEnv(2, reach), TrajectoryPromptTransform(bank))
    torch.manual_seed(0)
    state = env.reset()
    kept = state["prompt", "trajectory_index"][1].item()
    for _ in range(6):
        state["_reset"] = torch.tensor([[True], [False]])
        state = env.reset(state)
        assert state["prompt", "trajectory_index"][1].item() == kept
    env.close()


def test_text_is_the_tasks_row(dataset):
    batch = dataset.replay_buffer(32, transforms=[TextPromptTransform(TABLE)], seed=0).sample()
    assert torch.equal(batch["prompt", "text_index"], batch["task_id"])


def test_a_buffers_prompts_are_other_trajectories_of_the_task(dataset, bank):
    transform = TrajectoryPromptTransform(bank, prompts_per_task=2)
    buffer = dataset.replay_buffer(64, transforms=[transform], seed=0)
    for _ in range(20):
        batch = buffer.sample()
        rows = batch["prompt", "trajectory_index"].squeeze(-1)
        assert torch.equal(bank.task_id[rows], batch["task_id"].squeeze(-1))
        assert (bank.trajectory_id[rows] != batch["trajectory_id"].squeeze(-1)).all()
        for task in batch["task_id"].unique():
            of_task = rows[batch["task_id"].squeeze(-1) == task]
            assert len(of_task.unique()) <= 2


def test_of_several_rows_of_a_trajectory_none_is_shown_to_itself(dataset, bank):
    copies = TrajectoryPromptBank.concatenate([bank] * 4)
    transform = TrajectoryPromptTransform(copies, prompts_per_task=2)
    transform.check_training(dataset.trajectory_task)
    buffer = dataset.replay_buffer(64, transforms=[transform], seed=0)
    seen = set()
    for _ in range(40):
        batch = buffer.sample()
        rows = batch["prompt", "trajectory_index"].squeeze(-1)
        assert torch.equal(copies.task_id[rows], batch["task_id"].squeeze(-1))
        assert (copies.trajectory_id[rows] != batch["trajectory_id"].squeeze(-1)).all()
        for task in batch["task_id"].unique():
            assert len(rows[batch["task_id"].squeeze(-1) == task].unique()) <= 2
        seen |= set(rows.tolist())
    assert seen == set(range(len(copies)))
    one = copies.concatenate([bank.first(1)] * 3)
    with pytest.raises(PromptError, match="at least two successful episodes"):
        TrajectoryPromptTransform(one).check_training(dataset.trajectory_task)


def test_an_environment_has_any_row_at_random(bank):
    copies = TrajectoryPromptBank.concatenate([bank] * 2)
    transform = TrajectoryPromptTransform(copies)
    reset = TensorDict({"task_id": torch.full((200, 1), REACH)}, [200])
    torch.manual_seed(0)
    rows = [transform._reset(None, reset.clone())["prompt", "trajectory_index"] for _ in range(30)]
    assert set(torch.cat(rows).flatten().tolist()) == set(copies.rows_of(REACH).tolist())


def test_tensor_mode_writes_what_index_mode_points_at(dataset, bank):
    batch = dataset.transitions[:8].clone()
    torch.manual_seed(5)
    rows = TrajectoryPromptTransform(bank)(batch.clone())
    torch.manual_seed(5)
    full = TrajectoryPromptTransform(bank, mode="tensor")(batch)
    index = rows["prompt", "trajectory_index"].squeeze(-1)
    for key, value in bank.prompts[index].items():
        assert torch.equal(full["prompt", "trajectory", key], value)


def test_the_only_trajectory_of_a_task_is_not_shown_to_itself(dataset):
    bank = TrajectoryPromptBank.from_dataset(dataset, 8).first(1)
    own = dataset.trajectory(0)[:4].clone()
    with pytest.raises(PromptError, match="at least two successful episodes"):
        TrajectoryPromptTransform(bank)(own)


def test_a_task_without_prompt_is_refused(bank):
    batch = TensorDict({"task_id": torch.tensor([[0]]), "trajectory_id": torch.tensor([[0]])}, [1])
    with pytest.raises(PromptError, match="no trajectory prompt"):
        TrajectoryPromptTransform(bank)(batch)


def test_the_buffer_holds_contexts_of_both_states(dataset, bank):
    batch = make("context", bank)(dataset.transitions[:8].clone())
    retrieval = PromptRetrieval(bank, METAWORLD_RETRIEVAL, METAWORLD_OBSERVATION_LAYOUT["fields"])
    row = batch["prompt", "trajectory_index"].squeeze(-1)
    torch.testing.assert_close(batch["retrieved_context"], retrieval(batch["observation"], row))
    torch.testing.assert_close(
        batch["next", "retrieved_context"], retrieval(batch["next", "observation"], row)
    )


def test_the_gate_is_random_on_a_buffer_and_decided_on_an_env(dataset):
    transform = ObservationGateTransform([REACH], state_visible_prob=0.25, in_keys=["task_id"])
    batch = transform(dataset.transitions.clone())
    assert batch["prompt", "observation_gate"].mean().item() == pytest.approx(0.25, abs=0.1)
    known = TransformedEnv(reach(), ObservationGateTransform([REACH], in_keys=["task_id"]))
    unknown = TransformedEnv(reach(), ObservationGateTransform([REACH + 1], in_keys=["task_id"]))
    assert known.rollout(2)["prompt", "observation_gate"].unique().tolist() == [1.0]
    assert unknown.rollout(2)["prompt", "observation_gate"].unique().tolist() == [0.0]


def test_the_encoder_runs_once_per_episode_without_gradient():
    calls = []

    class Encoder(Head):
        def forward(self, row):
            calls.append(torch.is_grad_enabled())
            return super().forward(row)

    network = TensorDictModule(Encoder(), [("prompt", "text_index")], ["prompt_embedding"])
    transform = PromptEmbeddingTransform(network, 3)
    env = TransformedEnv(reach(), Compose(TextPromptTransform(TABLE), transform))
    env.reset()
    calls.clear()
    rollout = env.rollout(5)
    assert calls == [False]
    assert (rollout["prompt_embedding"] == rollout["prompt_embedding"][0]).all()
    assert not list(transform.parameters())  # neither trained nor saved with the environment
    assert network.training
    with pytest.raises(RuntimeError, match="for environments"):
        transform(TensorDict({"prompt": {"text_index": torch.tensor([[0], [1]])}}, [2]))


@pytest.mark.parametrize(
    "build",
    [
        lambda bank: TrajectoryPromptTransform(bank, mode="word"),
        lambda bank: TextPromptTransform(TABLE[0]),
        lambda bank: TrajectoryPromptTransform(bank, choice="last"),
        lambda bank: TrajectoryPromptTransform(bank, prompts_per_task=1),
        lambda bank: ObservationGateTransform([1], state_visible_prob=1.5),
        lambda bank: TextPromptTransform(TABLE, dropout=1.0),
        lambda bank: TrajectoryPromptTransform(bank, mode="tensor", dropout=0.5),
    ],
)
def test_wrong_arguments(build, bank):
    with pytest.raises(ValueError, match=r"unknown|must be|must have|by its row"):
        build(bank)


def test_nothing_frozen_is_saved_with_a_buffer(dataset, bank):
    transforms = [TextPromptTransform(TABLE), make("gate", bank)]
    buffer = dataset.replay_buffer(4, transforms=transforms, seed=0)
    state = buffer.state_dict()["_transforms"]
    assert not [key for key in state if "table" in key or "_rows" in key]


def test_prompts_are_left_out_at_random_on_a_buffer_and_never_on_an_env(dataset, bank):
    text = TextPromptTransform(TABLE, dropout=0.3)
    trajectory = TrajectoryPromptTransform(bank, dropout=0.3)
    batch = Compose(text, trajectory)(dataset.transitions.clone())["prompt"]
    missing = {key: batch[key] < 0 for key in ("text_index", "trajectory_index")}
    for rows in missing.values():
        assert rows.float().mean().item() == pytest.approx(0.3, abs=0.1)
    both = (missing["text_index"] & missing["trajectory_index"]).float().mean().item()
    assert both == pytest.approx(0.09, abs=0.06)  # each by itself
    env = TransformedEnv(reach(), Compose(text.clone(), trajectory.clone()))
    assert all((env.rollout(3)["prompt", key] >= 0).all() for key in missing)


def test_without_a_demonstration_the_gate_is_open_and_the_context_empty(dataset, bank):
    fields = METAWORLD_OBSERVATION_LAYOUT["fields"]
    transforms = Compose(
        AbsentPromptTransform([("prompt", "trajectory_index")]),
        RetrievedContextTransform(PromptRetrieval(bank, METAWORLD_RETRIEVAL, fields)),
        ObservationGateTransform([], state_visible_prob=0.0),
    )
    batch = transforms(dataset.transitions[:8].clone())
    assert (batch["prompt", "observation_gate"] == 1).all()
    for context in (batch["retrieved_context"], batch["next", "retrieved_context"]):
        assert (context == 0).all()
    env = TransformedEnv(reach(), transforms.clone())
    assert (env.rollout(2)["prompt", "observation_gate"] == 1).all()


def test_a_transform_that_is_moved_leaves_the_callers_prompts(bank):
    transform = TrajectoryPromptTransform(bank, mode="tensor").to(torch.float64)
    env = TransformedEnv(reach(), transform)
    assert env.reset()["prompt", "trajectory", "action"].dtype == torch.float64
    assert bank.prompts["action"].dtype == torch.float32


def test_prompts_of_a_training_are_checked_once(bank):
    TrajectoryPromptTransform(bank).check_training(bank.task_id)
    with pytest.raises(PromptError, match="no trajectory prompt for task 3"):
        TrajectoryPromptTransform(bank).check_training(torch.tensor([3]))
    with pytest.raises(PromptError, match="only trajectory prompt"):
        TrajectoryPromptTransform(bank.first(1)).check_training(bank.task_id)
