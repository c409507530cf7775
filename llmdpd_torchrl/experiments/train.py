"""The training of a run: networks, loss and trainer, put together from the library's parts."""

from __future__ import annotations

import contextlib
import copy
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torchrl.envs.transforms import RewardScaling

from llmdpd_torchrl.baselines import get_algorithm
from llmdpd_torchrl.evaluation.hook import EvaluationHook
from llmdpd_torchrl.experiments.config import Run, plain, text_encoder, trusted
from llmdpd_torchrl.experiments.evaluate import evaluation_prompts, make_evaluator, video_renderer
from llmdpd_torchrl.modules.build import Networks, make_networks
from llmdpd_torchrl.modules.config import NetworkConfig
from llmdpd_torchrl.modules.critics import share_critics
from llmdpd_torchrl.objectives import return_bounds
from llmdpd_torchrl.policies.policy import LLMDPDPolicy
from llmdpd_torchrl.policies.transforms import training_transforms
from llmdpd_torchrl.trainers import (
    Checkpointing,
    OfflineOptimizationStepper,
    OfflineTrainer,
    SavedTraining,
    TargetUpdater,
    find_checkpoint,
    handle_signals,
    make_logger,
    resume,
)
from llmdpd_torchrl.trainers.ranks import all_ranks, barrier, ranks
from llmdpd_torchrl.utils.processes import available_cores


def train(run: Run) -> None:
    """Train and save the policy, or load it if this very training is done.

    An interrupted training continues from its last intact checkpoint, as if it had not stopped. Of
    several ranks all train, and the first one does the rest.
    """
    folder, mine = run.output / "checkpoint", ranks()
    if "train" not in run.cfg.force:
        found = all_ranks(_find_trained(run))[0]
        if found is not None:
            print(f"train: reusing {found} (force=[train] trains again)")
            run.policy = LLMDPDPolicy.from_pretrained(found, run.device, trust=trusted(run.cfg))
            if found != folder and mine.is_first:
                run.policy.save_pretrained(folder)
                with contextlib.suppress(FileNotFoundError):
                    shutil.copy(found.parent / "metrics.csv", run.output)
            return
        if folder.exists():
            print(f"train: {folder} is of other settings or data and is replaced")
    identity: dict[str, Any] = {
        "fingerprint": run.fingerprint,
        "data_hash": run.dataset.manifest.data_hash,
        "ranks": mine.size if mine.size > 1 else None,
    }
    states, saved = _find_saved(run, identity)
    torch.manual_seed(run.cfg.seed)
    bounds = value_bounds(run)
    run.policy, networks = _build(run, bounds)
    if not mine.is_first:  # the same networks, and noise of its own
        torch.manual_seed(mine.seed(run.cfg.seed))
    trainer = _make_trainer(run, networks, bounds, saved)
    with contextlib.ExitStack() as stack:
        stack.callback(trainer.logger.shutdown)  # or a sweep's next run would log into this one
        if run.cfg.evaluation.every and mine.is_first:
            _evaluate_meanwhile(run, trainer, stack)
        # Last of the hooks: it saves what the others found in a round.
        every = run.cfg.trainer.save_every
        Checkpointing(states, every=every, identity=identity).register(trainer)
        if saved is not None:
            resume(trainer, saved)
        with handle_signals(trainer):
            trainer.train()
    run.policy.info["updates"] = run.cfg.trainer.total_updates
    if run.policy.config.retrieves and run.cfg.network.text_mixture:
        run.policy.library = _library(run)
    barrier()  # all have left their checkpoints
    if mine.is_first:
        run.policy.save_pretrained(folder)
        shutil.rmtree(run.output / "training")
    run.trained = True


def _library(run: Run) -> dict[int, Any]:
    """The first successful demonstration of each trained task."""
    assert run.recorded is not None
    first = run.recorded.first(1)
    rows = zip(first.task_id.tolist(), first.trajectory_id.tolist(), strict=True)
    return {task: run.dataset.trajectory(row) for task, row in rows}


def _find_trained(run: Run) -> Path | None:
    """The policy of this very training: this run's, or that of a run with another evaluation."""

    def is_done(folder: Path) -> bool:
        found = (path.read_text() for path in folder.glob("*.json"))
        return LLMDPDPolicy.is_saved(folder) and any(run.fingerprint in text for text in found)

    if is_done(run.output / "checkpoint"):
        return run.output / "checkpoint"
    if run.cfg.evaluation.every:  # a policy that others have trained lacks the evaluations
        return None
    settings = _without_names(run.cfg)
    for path in sorted(run.output.parent.glob("*/config.yaml")):
        folder = path.parent / "checkpoint"
        if is_done(folder) and _without_names(OmegaConf.load(path)) != settings:
            return folder
    return None


def _without_names(cfg: Any) -> dict[str, Any]:
    return {k: v for k, v in plain(cfg).items() if k not in ("name", "changes", "output_dir")}


def _find_saved(run: Run, identity: dict[str, Any]) -> tuple[Path, SavedTraining | None]:
    """This rank's folder of checkpoints, and the one to continue from, which all ranks have.

    Checkpoints of other trainings are removed.
    """
    states, mine = run.output / "training" / run.fingerprint, ranks()
    begins = run.cfg.resume == "never" or "train" in run.cfg.force
    if mine.is_first:
        for other in states.parent.glob("*"):
            if begins or other != states:
                shutil.rmtree(other)
    barrier()
    if not mine.is_first:
        states /= f"rank-{mine.rank}"
    steps: set[float] = {math.inf}
    while True:  # until they agree: one of them may have been killed before it saved
        latest = min(steps)
        saved = find_checkpoint(states, identity, latest=latest) if states.is_dir() else None
        steps = set(all_ranks(-1.0 if saved is None else float(saved.step)))
        if len(steps) == 1:
            break
    if not mine.is_first:
        return states, saved
    if saved is None:
        (run.output / "metrics.csv").unlink(missing_ok=True)
        shutil.rmtree(run.output / "best", ignore_errors=True)
    else:
        print(f"train: resuming at update {saved.step} (resume=never starts from scratch)")
    return states, saved


def _build(run: Run, bounds: tuple[float, float]) -> tuple[LLMDPDPolicy, Networks]:
    """The policy, untrained, and its networks with the critics."""
    cfg, dataset, table = run.cfg, run.dataset, run.training_prompts.text
    trained = dataset.trajectory_task.unique()
    styles = None
    if table is not None:
        styles = torch.stack([one[trained] for one in (table, run.wordings) if one is not None])
    from_data = {
        "prompt": cfg.prompt,
        "trajectory_length": cfg.trajectory_prompt.length,
        "observation_fields": dataset.manifest.observation_layout["fields"],
        "action_dim": dataset.manifest.action_size,
        "text_dim": NetworkConfig.text_dim if styles is None else styles.shape[-1],
        "text_styles": 1 if styles is None else len(styles),
        "trained_task_ids": trained.tolist(),
        **run.family.network(run),
    }
    config = NetworkConfig(**plain(cfg.network) | from_data)
    networks = make_networks(
        config,
        observations=dataset.transitions["observation"],
        text_embeddings=styles,
        value_bounds=bounds,
    )
    about = {
        "fingerprint": run.fingerprint,
        "algorithm": cfg.algorithm,
        "seed": run.cfg.seed,
        "trained_tasks": list(run.split.train),
        "held_out_tasks": list(run.split.held_out),
        "task_table": list(run.split.table.names),
        "text_encoder": text_encoder(cfg) if config.uses_text else None,
        "text_encoder_identity": run.text_encoder_identity if config.uses_text else None,
        "data_hash": dataset.manifest.data_hash,
        **_describe_data(run),
        "hide_goal": run.family.settings(cfg).hide_goal,
        **run.family.about(),
    }
    texts = OmegaConf.select(cfg, "texts")
    if config.uses_text and texts not in (None, "own"):
        about["texts"] = texts
    for critic in networks.qvalues:  # initialised on the CPU, so that all devices start alike
        critic.to(run.device)
    return LLMDPDPolicy.from_networks(config, networks, about).to(run.device), networks


def _describe_data(run: Run) -> dict[str, str]:
    """The benchmark and the training data in words, for the policy's card."""
    manifest, family = run.dataset.manifest, run.family.simulator
    titles = {"metaworld": "Meta-World", "mujoco": "recorded locomotion"}
    title = titles.get(family, "own tasks")
    if "behaviours" in manifest.settings:
        found = [{"episodes": 1, **one} for one in manifest.settings["behaviours"]]
        parts = [", ".join(map(_described, one.items())) for one in found]
        source = f"scripted experts, behaviours in turn: {'; '.join(parts)}"
    elif "noise_levels" in manifest.settings:
        only = run.cfg.data.use_noise
        noise = manifest.settings["noise_levels"] if only is None else [only]
        source = f"scripted experts, action noise {', '.join(f'{level:g}' for level in noise)}"
    else:  # by their files' names: their folders are nobody else's business
        source = ", ".join(Path(name).name for name in manifest.settings)
    benchmark = f"{title}, split {run.split.name}"
    tasks, episodes = len(run.split.train), len(run.dataset.lengths)
    steps = len(run.dataset.transitions)
    counts = f"{tasks} task{'s' * (tasks > 1)}, {episodes} episodes, {steps} transitions"
    return {"benchmark": benchmark, "data": f"{benchmark}: {counts}; {source}"}


def _described(setting: tuple[str, Any]) -> str:
    """A setting of a behaviour in words."""
    key, value = setting
    return f"{key} {value}" if isinstance(value, bool | str) else f"{key} {value:g}"


def value_bounds(run: Run) -> tuple[float, float]:
    """The returns that the rewards of the data allow, scaled as these."""
    rewards = run.cfg.loss.reward_scale * run.dataset.transitions["next", "reward"]
    return return_bounds(rewards, run.cfg.loss.gamma, int(run.dataset.lengths.max()))


def _make_trainer(
    run: Run, networks: Networks, bounds: tuple[float, float], saved: SavedTraining | None
) -> OfflineTrainer:
    cfg, policy = run.cfg, run.policy
    algorithm = get_algorithm(cfg.algorithm)
    labels = run.family.imitates_expert(cfg)
    transforms = training_transforms(
        policy,
        run.training_prompts,
        prompts_per_task=cfg.trajectory_prompt.per_task,
        state_visible_prob=cfg.trajectory_prompt.state_visible_prob,
        augment=cfg.trajectory_prompt.augment,
        dataset=run.dataset,
        successors=algorithm.has_critics,
        labels=labels,
    )
    scaling = RewardScaling(loc=0.0, scale=cfg.loss.reward_scale, in_keys=[("next", "reward")])
    transforms.append(scaling)
    tables = run.training_prompts
    if run.device.type != "cpu":  # the transforms may need theirs beside the data
        tables = copy.deepcopy(tables).to(run.device)
    prompt_network = policy.prompt_network(tables)
    loss = algorithm.make_loss(networks, prompt_network, value_bounds=bounds, **plain(cfg.loss))
    if cfg.network.candidates > 1:
        share_critics(networks.qvalues, loss.target_qvalue_network_params)
    if labels:
        loss.set_keys(expert_action="expert_action")
    mine = ranks()
    logger = make_logger(
        directory=run.output,
        name=cfg.name,
        config=plain(cfg),
        resume_step=None if saved is None else saved.step,
        **(plain(cfg.logger) if mine.is_first else {"kind": "none"}),
    )
    size, seed = cfg.optim.batch_size // mine.size, mine.seed(cfg.seed)
    return OfflineTrainer(
        loss,
        run.dataset.replay_buffer(size, transforms=transforms, seed=seed),
        total_updates=cfg.trainer.total_updates,
        stepper=OfflineOptimizationStepper(
            loss,
            learning_rate=cfg.optim.learning_rate,
            max_grad_norm=cfg.optim.max_grad_norm,
            total_updates=cfg.trainer.total_updates,
        ),
        target_updater=TargetUpdater(loss, algorithm.schedules_with(cfg.optim.tau)),
        logger=logger,
        log_every=cfg.trainer.log_every,
        limits={"q_value": bounds} if algorithm.has_critics and mine.is_first else {},
        progress_bar=cfg.progress and mine.is_first,
        failures=run.output if mine.is_first else None,
        threads=cfg.trainer.threads or available_cores(),
        compile=cfg.trainer.compile,
    )


def _evaluate_meanwhile(run: Run, trainer: OfflineTrainer, stack: contextlib.ExitStack) -> None:
    """Evaluate in intervals during the training, until the stack is closed."""
    cfg, split = run.cfg, run.split
    interim = {"episodes_per_task": cfg.evaluation.every_episodes}
    evaluator = make_evaluator(run, split.tasks, progress=False, **interim)
    EvaluationHook(
        stack.enter_context(evaluator),
        run.policy,
        every=cfg.evaluation.every,
        trained_tasks=split.train,
        tables=evaluation_prompts(run),
        best=run.output / "best" / "checkpoint",
        render=video_renderer(run, False) if cfg.video.during_training else None,
        fps=cfg.video.fps,
    ).register(trainer)
