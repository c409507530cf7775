import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from llmdpd_torchrl.evaluation import EvaluationSettings, Evaluator
from llmdpd_torchrl.evaluation.hook import EvaluationHook
from llmdpd_torchrl.modules import NetworkConfig, make_networks
from llmdpd_torchrl.objectives import DiffusionQLLoss
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.trainers import OfflineTrainer
from llmdpd_torchrl.trainers.loggers import MetricsCSVLogger
from llmdpd_torchrl.trainers.metrics_file import read_metrics
from llmdpd_torchrl.utils.errors import ConfigError

TASKS = ("reach-v3", "push-v3")
SETTINGS = EvaluationSettings(episodes_per_task=1, max_steps=5)


@pytest.fixture(scope="module")
def evaluator(backend):
    with Evaluator(TASKS, SETTINGS, backend=backend, progress=False) as evaluator:
        yield evaluator


def make_training(logger=None, log_every=2):
    torch.manual_seed(0)
    config = NetworkConfig(prompt="none", hidden=[8])
    networks = make_networks(config)
    policy = LLMDPDPolicy.from_networks(config, networks)
    data = TensorDict(
        {
            "observation": torch.randn(32, 39),
            "action": torch.rand(32, 4),
            "next": {
                "observation": torch.randn(32, 39),
                "reward": torch.randn(32, 1),
                "terminated": torch.zeros(32, 1, dtype=torch.bool),
                "done": torch.zeros(32, 1, dtype=torch.bool),
            },
        },
        [32],
    )
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(32), batch_size=8)
    buffer.extend(data)
    loss = DiffusionQLLoss(networks.actor, networks.qvalues)
    trainer = OfflineTrainer(
        loss, buffer, total_updates=6, log_every=log_every, logger=logger, progress_bar=False
    )
    return policy, trainer


def test_success_is_logged_and_training_is_not_touched(evaluator, tmp_path):
    plain, trainer = make_training()
    trainer.train()
    policy, trainer = make_training(MetricsCSVLogger("run", tmp_path))
    frames = [np.zeros((8, 8, 3), np.uint8)] * 3
    hook = EvaluationHook(
        evaluator, policy, every=4, trained_tasks=["push-v3"], render=lambda: frames
    )
    hook.register(trainer)
    trainer.train()
    steps, columns = read_metrics(tmp_path / "metrics.csv")
    assert steps.tolist() == [2, 4, 6]
    for name in ("eval/success_seen", "eval/success_unseen"):
        assert columns[name][1] == 0
        assert np.isnan(columns[name][[0, 2]]).all()
    assert [path.name for path in tmp_path.rglob("*.mp4")] == ["episodes_4.mp4"]
    for ours, theirs in zip(policy.parameters(), plain.parameters(),
                            strict=True):  # fmt: skip
        assert torch.equal(ours, theirs)


def test_the_best_on_trained_tasks_is_kept(tmp_path):
    policy, _ = make_training()

    class Scripted:
        tasks = TASKS
        rates = iter([(0, 1), (1, 0), (1, 1), (0, 1)])

        def __call__(self, policy, tables):
            from llmdpd_torchrl.evaluation import EpisodeResult

            return [EpisodeResult(t, 0, bool(s), False, 0.0, 5)
                    for t, s in zip(TASKS, next(self.rates), strict=True)]  # fmt: skip

    hook = EvaluationHook(
        Scripted(), policy, every=1, trained_tasks=["reach-v3"], best=tmp_path / "best"
    )
    for updates in range(1, 5):
        hook(updates, None)
    kept = LLMDPDPolicy.from_pretrained(tmp_path / "best")
    assert kept.info["updates"] == 3
    state = hook.state_dict()
    assert state["best_value"] == 1.0
    seen = [(row["updates"], row["eval/success_seen"]) for row in state["history"]]
    assert seen == [(1, 0.0), (2, 1.0), (3, 1.0), (4, 0.0)]
    other = EvaluationHook(Scripted(), policy, every=1, trained_tasks=[])
    other.load_state_dict(state)
    assert other.best_value == 1.0
    assert other.history == hook.history


def test_mistakes_are_named(evaluator):
    policy, trainer = make_training()
    with pytest.raises(ConfigError, match="must be at least 1 update"):
        EvaluationHook(evaluator, policy, every=0, trained_tasks=[])
    with pytest.raises(ConfigError, match=r"multiple of trainer\.log_every=2"):
        EvaluationHook(evaluator, policy, every=3, trained_tasks=[]).register(trainer)
