"""Train LLM-Driven Policy Diffusion on Meta-World and evaluate it on seen and unseen tasks.

collect -> embed -> train -> evaluate -> artefacts; a stage whose output exists is skipped.
Run with ``--help`` for the settings, which live in ``configs/``.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any, TypeVar

import hydra
from omegaconf import DictConfig, OmegaConf

from llmdpd_torchrl.errors import ConfigError, UserError

# What the stages need is imported in them: worker processes import this file too, and `--help`
# should not wait for torch.

Settings = TypeVar("Settings")
STAGES = ("embed", "collect", "train", "evaluate", "film", "report")


@dataclasses.dataclass
class Run:
    """What the stages hand on to each other."""

    cfg: DictConfig
    output: Path
    split: Any
    fingerprint: str = ""
    support_hash: str | None = None
    dataset: Any = None
    text_table: Any = None
    training_bank: Any = None
    evaluation_bank: Any = None
    policy: Any = None
    trained: bool = False
    failed: int = 0  # episodes that broke off
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)


def read(kind: type[Settings], cfg: Any, where: str, **more: Any) -> Settings:
    """Make a settings dataclass of a config group, with one line for a wrong name or type."""
    values = {**OmegaConf.to_container(cfg, resolve=True), **more}  # type: ignore[dict-item]
    kinds: dict[str, Any] = {"int": int, "float": (int, float), "str": str, "bool": bool}
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]
        wanted = kinds.get(str(item.type))
        value = values.get(item.name)
        if (
            wanted
            and item.name in values
            and (not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool))
        ):
            raise ConfigError(f"{where}.{item.name} is {value!r}: it must be of type {item.type}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None


def prepare(cfg: DictConfig) -> Run:
    """Check what can be checked before any work is done, and make the output folder."""
    from llmdpd_torchrl.data.collection import CollectionSettings
    from llmdpd_torchrl.envs.splits import make_split
    from llmdpd_torchrl.evaluation.backends import check_backend
    from llmdpd_torchrl.evaluation.controls import check_control
    from llmdpd_torchrl.evaluation.rollout import EvaluationSettings
    from llmdpd_torchrl.files import make_writable_folder
    from llmdpd_torchrl.modules.networks import NetworkConfig
    from llmdpd_torchrl.objectives import LLMDPDLoss
    from llmdpd_torchrl.prompts import make_text_encoder

    split = make_split(cfg.tasks.split, train=cfg.tasks.train, held_out=cfg.tasks.held_out)
    read(CollectionSettings, collection_settings(cfg), "data")
    read(EvaluationSettings, evaluation_settings(cfg), "evaluation")
    network = read(NetworkConfig, cfg.network, "network", prompt=cfg.prompt)
    if cfg.until not in STAGES:
        raise ConfigError(f"until is {cfg.until!r}: it names the last stage, {', '.join(STAGES)}")
    if set(cfg.force) - {"train", "evaluate"}:
        raise ConfigError(f"force is {list(cfg.force)}: it lists stages, train and evaluate")
    for key in (
        "optim.batch_size",
        "trainer.total_updates",
        "trainer.log_every",
        "video.every",
        "evaluation.demonstrations",
    ):
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{key} is {value!r}: it must be a whole number of at least 1")
    for key in ("every", "confusion"):
        value = cfg.evaluation[key]
        if not isinstance(value, int) or value < 0:
            raise ConfigError(f"evaluation.{key} is {value!r}: use a whole number, or 0 for none")
    if cfg.evaluation.every % cfg.trainer.log_every:
        raise ConfigError(
            f"evaluation.every is {cfg.evaluation.every}: use a multiple of trainer.log_every, "
            f"which is {cfg.trainer.log_every}"
        )
    check_backend(cfg.evaluation.backend, cfg.evaluation.workers)
    check_control(cfg.evaluation.control, cfg.evaluation.demonstrations, network, split.tasks)
    if cfg.loss.alignment and (network.prompt != "both" or network.retrieves):
        raise ConfigError(
            "loss.alignment needs both prompts as vectors: use network.conditioning=pooled and "
            "prompt=both, or set it to 0"
        )
    known = inspect.signature(LLMDPDLoss.__init__).parameters
    unknown = sorted(set(cfg.loss) - set(known) - {"gamma", "reward_scale"})
    if unknown:
        raise ConfigError(f"loss: there is no setting {unknown[0]!r}; see LLMDPDLoss")
    for task in cfg.video.tasks or ():
        if task not in split.tasks:
            raise ConfigError(
                f"video.tasks: unknown task {task!r} in split {split.name!r}: choose some of "
                f"{', '.join(split.tasks)}"
            )
    if cfg.prompt in ("both", "text"):
        make_text_encoder(plain(cfg.text_encoder))
    output = make_writable_folder(cfg.output_dir, "output", "output_dir")
    return Run(cfg, output, split)


def plain(value: Any) -> Any:
    """A setting without the configuration around it, as JSON has it."""
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def collection_settings(cfg: DictConfig) -> DictConfig:
    """The part of ``data`` that the data is a function of."""
    names = ["episodes_per_task", "noise_levels", "seed", "max_steps", "steps_after_success"]
    return OmegaConf.masked_copy(cfg.data, names)


def evaluation_settings(cfg: DictConfig) -> DictConfig:
    """The part of ``evaluation`` that the result is a function of."""
    names = ["episodes_per_task", "max_steps", "seed", "stochastic"]
    return OmegaConf.masked_copy(cfg.evaluation, names)


def embed(run: Run) -> None:
    """Look up the text embeddings; the language model runs only for texts it has not seen yet."""
    from llmdpd_torchrl.data.tasks import METAWORLD_TASKS
    from llmdpd_torchrl.prompts import text_embedding_table

    if run.cfg.prompt in ("both", "text"):
        run.text_table = text_embedding_table(METAWORLD_TASKS.names, plain(run.cfg.text_encoder))


def collect(run: Run) -> None:
    """Collect training data and support demonstrations, and cut the trajectory prompts."""
    from llmdpd_torchrl.data import TrajectoryDataset
    from llmdpd_torchrl.data.collection import CollectionSettings, collect_metaworld
    from llmdpd_torchrl.prompts.trajectory import TrajectoryPromptBank

    cfg, split = run.cfg, run.split
    split.check_trainable(split.train)
    settings = read(CollectionSettings, collection_settings(cfg), "data")
    options = {"workers": cfg.data.workers, "progress": cfg.progress}
    folder = Path(cfg.data.folder)
    collect_metaworld(folder / "train", split.train, settings, **options)
    run.dataset = TrajectoryDataset.load(
        folder / "train", split.train, hide_goal=cfg.data.hide_goal
    )
    length = cfg.trajectory_prompt.length
    run.training_bank = TrajectoryPromptBank.from_dataset(run.dataset, length)
    run.evaluation_bank = run.training_bank
    if split.held_out:
        # A seed of its own: demonstrations of held-out tasks are never trained on.
        support = dataclasses.replace(
            settings, episodes_per_task=cfg.data.support_episodes, seed=settings.seed + 1
        )
        collect_metaworld(folder / "support", split.held_out, support, **options)
        demonstrations = TrajectoryDataset.load(
            folder / "support", split.held_out, hide_goal=cfg.data.hide_goal
        )
        run.support_hash = demonstrations.manifest.data_hash
        bank = TrajectoryPromptBank.from_dataset(demonstrations, length, trained_on=False)
        run.evaluation_bank = TrajectoryPromptBank.concatenate([run.training_bank, bank])
    identity = OmegaConf.to_container(
        OmegaConf.masked_copy(
            cfg, ["seed", "prompt", "text_encoder", "tasks", "trajectory_prompt", "network", "loss",
                  "optim"]
        )
    )  # fmt: skip
    identity = [identity, cfg.trainer.total_updates, cfg.data.hide_goal]
    identity.append(run.dataset.manifest.data_hash)
    text = json.dumps(identity, sort_keys=True)
    run.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]


def train(run: Run) -> None:
    """Train, and save the policy; or load it if this very training has been done."""
    from llmdpd_torchrl.modules.policy import LLMDPDPolicy

    folder = run.output / "checkpoint"
    if (folder / "policy.json").exists() and "train" not in run.cfg.force:
        policy = LLMDPDPolicy.from_pretrained(folder)
        if policy.info.get("fingerprint") == run.fingerprint:
            print(f"train: reusing {folder} (force=[train] trains again)")
            run.policy = policy
            return
        print(f"train: {folder} is of other settings or data and is replaced")
    run.policy = fit(run)
    run.policy.info["updates"] = run.cfg.trainer.total_updates
    run.policy.save_pretrained(folder)
    run.trained = True


def fit(run: Run) -> Any:
    """Build networks, loss and trainer from TorchRL's and our parts, and run them."""
    import torch
    from torchrl.envs.transforms import RewardScaling

    from llmdpd_torchrl.evaluation.interval import IntervalEvaluation
    from llmdpd_torchrl.modules.networks import NetworkConfig, make_networks
    from llmdpd_torchrl.modules.policy import LLMDPDPolicy
    from llmdpd_torchrl.objectives import LLMDPDLoss
    from llmdpd_torchrl.trainers.logging import make_logger
    from llmdpd_torchrl.trainers.offline import OfflineOptimizationStepper, OfflineTrainer
    from llmdpd_torchrl.transforms.pipeline import training_transforms
    from llmdpd_torchrl.workers import available_cores

    cfg, dataset, table = run.cfg, run.dataset, run.text_table
    torch.manual_seed(cfg.seed)
    torch.set_num_threads(cfg.trainer.threads or available_cores())
    config = read(
        NetworkConfig,
        cfg.network,
        "network",
        prompt=cfg.prompt,
        trajectory_length=cfg.trajectory_prompt.length,
        observation_fields=dataset.manifest.observation_layout["fields"],
        text_dim=NetworkConfig.text_dim if table is None else table.shape[-1],
    )
    networks = make_networks(
        config,
        observations=dataset.transitions["observation"],
        text_embeddings=None if table is None else table[dataset.trajectory_task.unique()],
    )
    policy = LLMDPDPolicy.from_networks(
        config,
        networks,
        {
            "fingerprint": run.fingerprint,
            "trained_tasks": list(run.split.train),
            "trained_task_ids": dataset.trajectory_task.unique().tolist(),
            "task_table": dataset.manifest.task_table,
            "text_encoder": plain(cfg.text_encoder) if config.uses_text else None,
            "hide_goal": cfg.data.hide_goal,
        },
    )
    transforms = training_transforms(
        policy,
        text_table=table,
        bank=run.training_bank,
        prompts_per_task=cfg.trajectory_prompt.per_task,
        open_probability=cfg.trajectory_prompt.open_probability,
        augment=cfg.trajectory_prompt.augment,
    )
    loss_options = dict(cfg.loss)
    gamma = loss_options.pop("gamma")
    scale = loss_options.pop("reward_scale")
    transforms.append(RewardScaling(loc=0.0, scale=scale, in_keys=[("next", "reward")]))
    loss = LLMDPDLoss(
        policy.prompt_network(table, run.training_bank),
        networks.actor,
        networks.qvalues,
        **loss_options,
    )
    loss.make_value_estimator(gamma=gamma)
    metrics = run.output / "metrics.csv"
    metrics.unlink(missing_ok=True)  # of a training that is being replaced
    logger = make_logger(
        directory=run.output,
        name=cfg.name,
        config=OmegaConf.to_container(cfg, resolve=True),  # type: ignore[arg-type]
        **cfg.logger,
    )
    trainer = OfflineTrainer(
        loss,
        dataset.replay_buffer(cfg.optim.batch_size, transforms=transforms, seed=cfg.seed),
        total_updates=cfg.trainer.total_updates,
        stepper=OfflineOptimizationStepper(
            loss,
            learning_rate=cfg.optim.learning_rate,
            max_grad_norm=cfg.optim.max_grad_norm,
            total_updates=cfg.trainer.total_updates,
        ),
        logger=logger,
        log_every=cfg.trainer.log_every,
        progress_bar=cfg.progress,
    )
    shutil.rmtree(run.output / "best", ignore_errors=True)  # of a training that is being replaced
    if not cfg.evaluation.every:
        trainer.train()
        return policy
    shown_table, shown_bank = shown(run)
    interim = {"episodes_per_task": cfg.evaluation.every_episodes}
    with evaluator(run, run.split.tasks, progress=False, **interim) as during:
        IntervalEvaluation(
            during,
            policy,
            every=cfg.evaluation.every,
            trained_tasks=run.split.train,
            text_table=shown_table,
            bank=shown_bank,
            best=run.output / "best" / "checkpoint",
            film=interval_film(run, policy),
            fps=cfg.video.fps,
        ).register(trainer)
        trainer.train()
    return policy


def settings_of(run: Run, **changes: Any) -> Any:
    """How the run's evaluations are made."""
    from llmdpd_torchrl.evaluation import EvaluationSettings

    cfg = run.cfg
    settings = read(
        EvaluationSettings, evaluation_settings(cfg), "evaluation", hide_goal=cfg.data.hide_goal
    )
    return dataclasses.replace(settings, **changes)


def evaluator(run: Run, tasks: tuple[str, ...], progress: bool, **changes: Any) -> Any:
    """The evaluator of some of the run's tasks."""
    from llmdpd_torchrl.evaluation import Evaluator
    from llmdpd_torchrl.evaluation.backends import make_backend

    backend = make_backend(run.cfg.evaluation.backend, run.cfg.evaluation.workers)
    return Evaluator(tasks, settings_of(run, **changes), backend=backend, progress=progress)


def evaluate(run: Run) -> None:
    """Evaluate the last policy, and the one that was best during the training if there is one."""
    from llmdpd_torchrl.modules.policy import LLMDPDPolicy

    measure(run, run.policy, run.output, run.cfg.name)
    best = run.output / "best"
    if run.cfg.evaluation.every and (best / "checkpoint" / "policy.json").exists():
        policy = LLMDPDPolicy.from_pretrained(best / "checkpoint")
        if policy.info.get("fingerprint") == run.fingerprint:
            measure(run, policy, best, f"{run.cfg.name} best (online selection)")


def measure(run: Run, policy: Any, output: Path, name: str) -> None:
    """Evaluate on seen and unseen tasks, and write results, table and plots."""
    from llmdpd_torchrl.evaluation import report
    from llmdpd_torchrl.evaluation.plots import plot_learning_curves, plot_success_bars
    from llmdpd_torchrl.evaluation.statistics import summarise

    cfg, split = run.cfg, run.split
    path = output / "results.json"
    about = {
        "fingerprint": run.fingerprint,
        "support_hash": run.support_hash,  # other demonstrations, another result
        "updates": policy.info.get("updates"),
        "evaluation": dataclasses.asdict(settings_of(run)),
        "control": cfg.evaluation.control,
        "demonstrations": cfg.evaluation.demonstrations,
    }
    if path.exists() and not set(cfg.force) & {"train", "evaluate"}:
        summary, before = report.read_results_json(path)
        if all(before.get(key) == value for key, value in about.items()):
            print(f"evaluate: reusing {path} (force=[evaluate] evaluates again)")
            run.failed += sum(task.errors for task in summary.tasks)
            report.print_table(summary)
            confuse(run, policy, output)
            return
    for stale in ("confusion.json", "episodes.mp4"):
        (output / stale).unlink(missing_ok=True)
    table, bank = shown(run)
    with evaluator(run, split.tasks, cfg.progress) as evaluation:
        episodes = evaluation(policy, text_table=table, bank=bank)
    run.failed += sum(episode.error is not None for episode in episodes)
    summary = summarise(episodes, split.train, split.held_out)
    extra = {
        **about,
        "name": name,
        "prompt": cfg.prompt,
        "seed": cfg.seed,
        "split": dataclasses.asdict(split) | {"table": None},
        "data_hash": run.dataset.manifest.data_hash,
        "command": ["python", *sys.argv],
        "starts": evaluation.suite.starts(),
        "episodes": [dataclasses.asdict(episode) for episode in episodes],
    }
    report.write_results_json(path, summary, extra)
    report.write_markdown(summary, output / "results.md")
    title = f"Success by task: {name}"
    if cfg.evaluation.control != "both":
        title += f", shown {cfg.evaluation.control}"
    plot_success_bars(summary, output / "success.png", title=title)
    if (output / "metrics.csv").exists():
        plot_learning_curves(output / "metrics.csv", output / "learning_curves.png")
    report.print_table(summary)
    confuse(run, policy, output)


def confuse(run: Run, policy: Any, output: Path) -> None:
    """Evaluate every unseen task under every one's prompts, if that is wanted and not done."""
    from llmdpd_torchrl.evaluation.controls import confusion
    from llmdpd_torchrl.files import write_json

    count, tasks = run.cfg.evaluation.confusion, run.split.held_out
    path = output / "confusion.json"
    if not count or len(tasks) < 2:
        return
    if path.exists() and json.loads(path.read_text()).get("episodes") == count:
        return
    table, bank = shown(run)
    with evaluator(run, tasks, run.cfg.progress, episodes_per_task=count) as evaluation:
        rates = confusion(evaluation, policy, text_table=table, bank=bank)
    write_json(path, {"rates": rates, "episodes": count})


def shown(run: Run) -> tuple[Any, Any]:
    """The prompts that the evaluation shows."""
    from llmdpd_torchrl.evaluation.controls import apply_control

    cfg = run.cfg
    table, bank = apply_control(
        cfg.evaluation.control,
        run.split.tasks,
        run.text_table,
        run.evaluation_bank,
        encoder=plain(cfg.text_encoder),
    )
    if bank is not None and cfg.evaluation.demonstrations > 1:
        bank = bank.first(cfg.evaluation.demonstrations).joined()
    return table, bank


def captions(run: Run) -> dict[str, str]:
    """The tasks of the videos, each with what is burnt into its pictures."""
    from llmdpd_torchrl.prompts import load_text_prompts

    cfg, prompts = run.cfg, load_text_prompts()
    tasks = run.split.held_out[:4] if cfg.video.tasks is None else tuple(cfg.video.tasks)
    control = cfg.evaluation.control
    prompt = cfg.prompt if control == "both" else f"{cfg.prompt}, shown {control}"
    return {
        task: f"{task} ({'seen' if task in run.split.train else 'unseen'}, prompt: {prompt}): "
        f"{prompts[task].objective}"
        for task in tasks
    }


def pictures(run: Run, policy: Any, progress: bool) -> list[Any]:
    """One episode of each of the videos' tasks, side by side."""
    from llmdpd_torchrl.evaluation.film import film_grid

    cfg = run.cfg
    table, bank = shown(run)
    frames, _ = film_grid(
        policy,
        captions(run),
        text_table=table,
        bank=bank,
        settings=settings_of(run),
        every=cfg.video.every,
        size=(cfg.video.width, cfg.video.height),
        progress=progress,
    )
    return frames


def film(run: Run) -> None:
    """Write ``episodes.mp4``."""
    from llmdpd_torchrl.evaluation.video import rendering_backend, write_video

    if not captions(run):
        return
    backend, problem = rendering_backend()
    if backend is None:
        print(f"video: {problem}")
        return
    frames = pictures(run, run.policy, run.cfg.progress)
    write_video(frames, run.output / "episodes.mp4", run.cfg.video.fps)


def interval_film(run: Run, policy: Any) -> Any:
    """What films during the training, if that is wanted and this machine can."""
    from llmdpd_torchrl.evaluation.video import rendering_backend

    if not run.cfg.video.during_training or not captions(run) or rendering_backend()[0] is None:
        return None
    return functools.partial(pictures, run, policy, False)


def report(run: Run) -> None:
    """Write ``report/report.html``, one page with everything on it."""
    from llmdpd_torchrl.evaluation.page import write_report

    print(f"report: {write_report(run.output)}")


def write_environment(run: Run) -> None:
    """The resolved configuration and a report of what it ran on."""
    from llmdpd_torchrl.evaluation.report import git_revision, versions
    from llmdpd_torchrl.files import write_atomic, write_json
    from llmdpd_torchrl.workers import available_cores

    resolved = OmegaConf.create(OmegaConf.to_yaml(run.cfg, resolve=True))
    write_atomic(run.output / "config.yaml", lambda path: OmegaConf.save(resolved, path))
    write_json(
        run.output / "environment.json",
        {
            "versions": versions(),
            "seed": run.cfg.seed,
            "git_revision": git_revision(),
            "cores": available_cores(),
            "command": sys.argv,
        },
    )


@hydra.main(version_base="1.3", config_path="../configs", config_name="train_metaworld")
def main(cfg: DictConfig) -> None:
    """Run all stages."""
    from llmdpd_torchrl.files import write_json

    started = time.monotonic()
    try:
        run = prepare(cfg)
        # Not before: importing torchrl, which the preparation does, sets the level itself.
        logging.getLogger("torchrl").setLevel(logging.WARNING)
        write_environment(run)
        for stage in STAGES[: STAGES.index(cfg.until) + 1]:
            begun = time.monotonic()
            globals()[stage](run)
            run.seconds[stage] = round(time.monotonic() - begun, 1)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if run.trained:  # the times of a run that reused its stages say nothing
        write_json(run.output / "timings.json", {"stage_seconds": run.seconds})
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in run.seconds.items())
    print(f"done in {(time.monotonic() - started) / 60:.1f} minutes ({spent})")
    print(f"artefacts: {run.output}")
    if run.failed:
        print(
            f"error: {run.failed} episodes of the evaluation broke off and count as not solved; "
            f"{run.output / 'results.json'} says why (force=[evaluate] evaluates again)",
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
