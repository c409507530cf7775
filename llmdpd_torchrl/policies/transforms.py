"""The transforms that a policy needs, for a replay buffer and for an environment."""

from __future__ import annotations

from torchrl.envs.transforms import Transform

from llmdpd_torchrl.data.dataset import TrajectoryDataset
from llmdpd_torchrl.policies.policy import LLMDPDPolicy
from llmdpd_torchrl.prompts.anchored_replay import AnchoredReplay, is_replayable
from llmdpd_torchrl.prompts.tables import PromptTables
from llmdpd_torchrl.transforms.history import HistoryTransform
from llmdpd_torchrl.transforms.in_turn import DemonstrationsInTurn
from llmdpd_torchrl.transforms.prompts import (
    AbsentPromptTransform,
    PromptEmbeddingTransform,
    TextPromptTransform,
    TrajectoryPromptTransform,
)
from llmdpd_torchrl.transforms.recovery import RecoveryTransform
from llmdpd_torchrl.transforms.retrieved_context import (
    ContextAugmentation,
    ObservationGateTransform,
    RetrievedContextTransform,
)


def training_transforms(
    policy: LLMDPDPolicy,
    tables: PromptTables,
    *,
    prompts_per_task: int = 2,
    state_visible_prob: float = 0.5,
    augment: bool = True,
    dataset: TrajectoryDataset | None = None,
    successors: bool = True,
    labels: bool = False,
) -> list[Transform]:
    """Transforms of the replay buffer: rows of prompts, and contexts where the actor reads them.

    ``tables`` hold the prompts of the training tasks, the trajectories cut from ``dataset``, which
    the buffer holds. For the numbers see :class:`TrajectoryPromptTransform` and
    :class:`ObservationGateTransform`, for ``augment`` :class:`ContextAugmentation`, for
    ``successors`` :class:`RetrievedContextTransform`, for ``labels`` :class:`HistoryTransform`.
    """
    policy.check_tables(tables)
    transforms = _transforms(
        policy, tables, prompts_per_task, state_visible_prob, dataset, successors, labels
    )
    for transform in transforms:
        if isinstance(transform, TrajectoryPromptTransform) and dataset is not None:
            transform.check_training(dataset.trajectory_task)
    contexts = [t for t in transforms if isinstance(t, RetrievedContextTransform)]
    return transforms + [ContextAugmentation(t.retrieval) for t in contexts if augment]


def environment_transforms(policy: LLMDPDPolicy, tables: PromptTables) -> list[Transform]:
    """Transforms of an environment: the same, and the prompt embedding, once per episode.

    With trajectories as recorded, an actor that retrieves has a :class:`RecoveryTransform` too. Of
    ``tables``, the first trajectory of each task is read, or, with their ``turn``, one after
    another. A policy that has been prompted needs none.
    """
    policy.check_tables(tables)
    if policy.is_prompted:
        return []
    transforms = _transforms(policy, tables)
    network = policy.prompt_network(tables)
    if network is not None:
        transforms.append(PromptEmbeddingTransform(network, network.encoder.embedding_dim))
    bank = tables.trajectories
    if policy.recovers and policy.config.retrieves and bank is not None and bank.has_recorded:
        fields = policy.config.observation_fields
        if is_replayable(fields):
            replay = AnchoredReplay(bank.recorded(), fields)
            sizes = policy.config.action_dim, bank.length
            transforms.append(RecoveryTransform(replay, fields["hand_position"], *sizes))
    return transforms


def _transforms(
    policy: LLMDPDPolicy,
    tables: PromptTables,
    prompts_per_task: int = 2,
    state_visible_prob: float = 0.5,
    dataset: TrajectoryDataset | None = None,
    successors: bool = True,
    labels: bool = False,
) -> list[Transform]:
    config = policy.config
    transforms: list[Transform] = []
    if config.uses_text:
        transforms.append(
            AbsentPromptTransform([("prompt", "text_index")])
            if tables.text is None
            else TextPromptTransform(tables.text, dropout=config.text_dropout)
        )
    if config.uses_trajectory:
        transforms.append(
            AbsentPromptTransform([("prompt", "trajectory_index")])
            if tables.trajectories is None
            else TrajectoryPromptTransform(
                tables.trajectories,
                mode="tensor" if config.reads_sequences else "index",
                prompts_per_task=prompts_per_task,
                choice="first",
                dropout=config.trajectory_dropout,
            )
        )
        if tables.trajectories is not None and tables.turn is not None:
            transforms.append(DemonstrationsInTurn(tables.trajectories, tables.turn))
    if config.reads_sequences:
        sizes = config.sequence
        transforms.append(
            HistoryTransform(
                sizes.history,
                config.observation_dim,
                config.action_dim,
                horizon=sizes.horizon if config.actor == "plan_diffusion" else 0,
                target_return=sizes.target_return,
                dataset=dataset,
                labels=labels,
            )
        )
    if config.retrieves:
        transforms.append(policy.make_context_transform(tables, successors=successors))
        transforms.append(
            ObservationGateTransform(config.trained_task_ids, state_visible_prob=state_visible_prob)
        )
    return transforms
