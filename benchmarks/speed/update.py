"""Updates a second: this package's losses against textbook Diffusion-QL in plain PyTorch.

An update is loss, backward pass, clipping, Adam and target networks of actor and critics; sampling
the batch is left out on both sides. The textbook's is ``textbook.py``; ours is what a user on a CPU
writes: the loss with ``deactivate_vmap=True``, fused Adam, ``TargetUpdater``. On a GPU ours is also
run as a CUDA graph. Both sides keep freed memory (``timing.keep_freed_memory``). The base point is
Meta-World's sizes (39 observations, 4 actions), batch 256, width 256, K = 5 and one thread.

``chain_eager_vs_textbook`` and ``chain_compiled_vs_textbook`` are ratios of updates a second at the
base point, all arithmetic in float32. ``one_step_vs_textbook`` is one-step guidance as fast as this
package makes it: compiled, matrix products in bfloat16 (autocast; weights, optimiser and targets
stay float32), and two reverse steps for the target's action. In float32 one-step guidance still
does half of the textbook's matrix products: ``one_step_eager_vs_textbook`` and
``one_step_compiled_vs_textbook`` are like for like. All ratios are against the textbook's chain
guidance.

``prompt_overhead`` is the extra time of the pooled prompt path with one prompt for each of 45 tasks
over the prompt-free update, batch 1024, and ``prompt_overhead_two_per_task`` the same with the two
prompts a task that training draws; ``share_of_gemm_peak`` relates the eager chain's matrix products
to the fastest matrix product measured in the same run.

    python -m benchmarks.speed.update  # all figures and the plot, about half an hour
    python -m benchmarks.speed.update --quick  # a small grid, not compiled; prints, writes nothing
    python -m benchmarks.speed.update --check  # the base points alone, compared with the figures
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import CudaGraphModule
from torchrl.objectives import LossModule
from tqdm.auto import tqdm

from benchmarks.common import check_figures, parse_speed_options, plot_sides, write_speed
from benchmarks.speed.textbook import Batch, TextbookDiffusionQL
from benchmarks.speed.timing import (
    alternate,
    count_flops,
    gemm_peak,
    keep_freed_memory,
    speedup,
    spread,
    threads,
)
from llmdpd_torchrl.evaluation.plots import save_figure
from llmdpd_torchrl.modules import (
    DiffusionActor,
    NetworkConfig,
    PromptNetwork,
    make_networks,
    make_qvalue_networks,
)
from llmdpd_torchrl.objectives import DiffusionQLLoss, LLMDPDLoss
from llmdpd_torchrl.prompts.tables import PromptTables, TrajectoryPromptBank
from llmdpd_torchrl.trainers import TargetUpdater

OBSERVATION_DIM, ACTION_DIM = 39, 4
#: Ours, and what each sets besides its guidance.
SIDES: dict[str, dict[str, Any]] = {
    "chain": {},
    "one_step": {},
    "chain_compiled": {"compiled": True},
    "one_step_compiled": {"compiled": True},
    "one_step_fast": {"compiled": True, "bfloat16": True, "target_sampling_steps": 2},
    "chain_cuda_graph": {"cuda_graph": True},
    "one_step_cuda_graph": {"cuda_graph": True},
}


@dataclass(frozen=True)
class Point:
    """Where is measured; the defaults are the base point."""

    batch: int = 256
    num_steps: int = 5
    threads: int = 1
    width: int = 256
    device: str = "cpu"


@dataclass(frozen=True)
class PromptPoint:
    """Where the prompt path is measured: distinct prompts in the batch, and their length."""

    prompts: int = 45
    length: int = 32
    batch: int = 1024
    threads: int = 1
    width: int = 256
    device: str = "cpu"


def random_transitions(batch: int, device: str) -> TensorDictBase:
    """A batch as a replay buffer hands it out."""
    no = torch.zeros(batch, 1, dtype=torch.bool)
    return TensorDict(
        {
            "observation": torch.randn(batch, OBSERVATION_DIM),
            "action": torch.rand(batch, ACTION_DIM) * 2 - 1,
            "next": {
                "observation": torch.randn(batch, OBSERVATION_DIM),
                "reward": torch.randn(batch, 1),
                "done": no,
                "terminated": no.clone(),
            },
        },
        batch_size=[batch],
    ).to(device)


def make_update(
    loss: LossModule,
    *,
    compiled: bool = False,
    bfloat16: bool = False,
    cuda_graph: bool = False,
    learning_rate: float = 3e-4,
    max_grad_norm: float = 10.0,
) -> Callable[[TensorDictBase], TensorDictBase]:
    """A full update of ``loss`` on a batch, which returns the detached losses.

    Args:
        loss: holds the networks.
        compiled: compile the loss (forward and backward pass).
        bfloat16: matrix products of the forward and backward pass in bfloat16.
        cuda_graph: replay all but the target networks, whose schedule counts on the host, as one
            CUDA graph; without a GPU the wrapper calls the function as it is.
        learning_rate: of Adam.
        max_grad_norm: per network.
    """
    groups: dict[str, list[torch.nn.Parameter]] = {}
    for name, parameter in loss.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(name.partition("_params")[0], []).append(parameter)
    device = next(loss.parameters()).device
    optimizer = torch.optim.Adam(
        [parameter for group in groups.values() for parameter in group],
        lr=learning_rate,
        fused=True,
        capturable=cuda_graph and device.type == "cuda",
    )
    targets = TargetUpdater(loss)
    compute = torch.compile(loss) if compiled else loss

    def descend(batch: TensorDictBase) -> TensorDictBase:
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            losses = compute(batch)
        (losses["loss_actor"] + losses["loss_qvalue"]).backward()
        for parameters in groups.values():
            torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return losses.detach()

    step = CudaGraphModule(descend, in_keys=[], out_keys=[], warmup=5) if cuda_graph else descend

    def update(batch: TensorDictBase) -> TensorDictBase:
        losses = step(batch)
        targets.step()
        return losses

    return update


def textbook_side(point: Point) -> Callable[[], None]:
    """The textbook's update on one batch."""
    sizes = {"num_steps": point.num_steps, "width": point.width}
    learner = TextbookDiffusionQL(OBSERVATION_DIM, ACTION_DIM, **sizes, device=point.device)
    data = random_transitions(point.batch, point.device)
    following = data["next"]
    batch = Batch(
        data["observation"],
        data["action"],
        following["observation"],
        following["reward"],
        1.0 - following["terminated"].float(),
    )
    return lambda: learner.update(batch)


def our_side(point: Point, side: str) -> Callable[[], Any]:
    """Our update on one batch; ``side`` is one of :data:`SIDES`."""
    settings = dict(SIDES[side])
    hidden = (point.width,) * 3
    sizes: dict[str, Any] = {"hidden": hidden, "num_steps": point.num_steps}
    actor = DiffusionActor(ACTION_DIM, OBSERVATION_DIM, in_keys=["observation"], **sizes)
    loss = DiffusionQLLoss(
        actor.to(point.device),
        [
            critic.to(point.device)
            for critic in make_qvalue_networks(OBSERVATION_DIM, ACTION_DIM, hidden=hidden)
        ],
        guidance="one_step" if side.startswith("one_step") else "chain",
        target_sampling_steps=settings.pop("target_sampling_steps", None),
        deactivate_vmap=True,
    )
    update = make_update(loss, **settings)
    data = random_transitions(point.batch, point.device)
    # A new TensorDict a call, as from a buffer: the loss adds the priorities to its input, and a
    # compiled one would be compiled again for them.
    return lambda: update(data.copy())


def prompt_side(point: PromptPoint, *, prompted: bool) -> Callable[[], Any]:
    """An update of the paper's pooled conditioning, or the same without a prompt."""
    config = NetworkConfig(
        prompt="both" if prompted else "none",
        conditioning="pooled",
        trajectory_length=point.length,
        hidden=(point.width,) * 3,
    )
    data = random_transitions(point.batch, "cpu")
    networks = make_networks(config, observations=data["observation"])
    network = None
    if networks.encoder is not None:
        bank, size = random_bank(point.prompts, point.length), point.prompts
        tables = PromptTables(torch.randn(size, config.text_dim), bank)
        network = PromptNetwork(networks.encoder, tables).to(point.device)
        rows = torch.arange(point.batch).remainder(size).unsqueeze(-1)
        data["prompt"] = TensorDict(
            {"text_index": rows, "trajectory_index": rows}, batch_size=[point.batch]
        )
    loss = LLMDPDLoss(
        network,
        networks.actor.to(point.device),
        [critic.to(point.device) for critic in networks.qvalues],
        deactivate_vmap=True,
    )
    update, data = make_update(loss), data.to(point.device)
    return lambda: update(data.copy())


def random_bank(prompts: int, length: int) -> TrajectoryPromptBank:
    """A bank of one prompt for each of ``prompts`` tasks."""
    shape = (prompts, length)
    steps = TensorDict(
        {
            "observation": torch.randn(*shape, OBSERVATION_DIM),
            "action": torch.rand(*shape, ACTION_DIM) * 2 - 1,
            "reward": torch.rand(*shape, 1),
            "mask": torch.ones(shape, dtype=torch.bool),
        },
        batch_size=shape,
    )
    return TrajectoryPromptBank(steps, torch.arange(prompts), torch.full((prompts,), -1))


def measure(
    point: Point, repeats: int, *, compiled: bool = False, slice_seconds: float = 0.3
) -> dict[str, Any]:
    """All sides at one point."""
    on_gpu = torch.device(point.device).type == "cuda"
    names = [
        name
        for name, settings in SIDES.items()
        if (compiled or not settings.get("compiled")) and (on_gpu or not settings.get("cuda_graph"))
    ]
    with threads(point.threads):
        sides = {"textbook": textbook_side(point)}
        sides |= {name: our_side(point, name) for name in names}
        times = alternate(sides, repeats=repeats, slice_seconds=slice_seconds)
        # What is compiled is not seen by the counter, and does what its eager twin does.
        flops = {name: count_flops(sides[name]) for name in ("textbook", "chain", "one_step")}
        peak = gemm_peak(point.device)
    rows = {}
    for name, seconds in times.items():
        row: dict[str, Any] = spread(seconds)
        row["updates_per_s"] = 1 / row["median"]
        row["vs_textbook"] = speedup(times["textbook"], seconds)
        count = flops.get(name.removesuffix("_compiled").removesuffix("_cuda_graph"))
        if count is not None:
            row["flops"] = count
            row["share_of_gemm_peak"] = count / row["median"] / peak
        rows[name] = row
    return {**asdict(point), "gemm_flops_per_s": peak, "sides": rows}


def measure_prompts(
    point: PromptPoint, repeats: int, *, slice_seconds: float = 0.3
) -> dict[str, Any]:
    """The pooled prompt path and the prompt-free update at one point."""
    with threads(point.threads):
        sides = {
            "prompted": prompt_side(point, prompted=True),
            "prompt_free": prompt_side(point, prompted=False),
        }
        times = alternate(sides, repeats=repeats, slice_seconds=slice_seconds)
    return {
        **asdict(point),
        "sides": {name: spread(seconds) for name, seconds in times.items()},
        "overhead": speedup(times["prompted"], times["prompt_free"]) - 1,
    }


def grid(device: str, *, quick: bool) -> tuple[list[Point], list[PromptPoint]]:
    """One axis at a time around the base point, which comes first in both lists."""
    base, prompted = Point(device=device), PromptPoint(device=device)
    if quick:
        points = [base, replace(base, batch=1024), replace(base, num_steps=20)]
        return points, [prompted, replace(prompted, prompts=10), replace(prompted, prompts=90)]
    points = [base, replace(base, threads=2)]
    for count in (1, 2):
        points += [replace(base, batch=size, threads=count) for size in (512, 1024, 2048, 4096)]
    points += [replace(base, num_steps=steps) for steps in (10, 20, 50)]
    prompts = [prompted] + [
        replace(prompted, prompts=count) for count in (1, 2, 5, 10, 20, 30, 50, 90)
    ]
    prompts += [replace(prompted, length=length) for length in (16, 64, 128, 256)]
    return points, prompts


def run(
    points: list[Point], prompts: list[PromptPoint], repeats: int, *, compiled: bool
) -> dict[str, Any]:
    """Measure the grid; compilation takes minutes, so only the base sizes are compiled."""
    bar = tqdm(total=len(points) + len(prompts), desc="update", unit="point")
    updates, overheads = [], []
    with bar:
        for point in points:
            compile_it = compiled and replace(point, threads=1) == points[0]
            updates.append(measure(point, repeats, compiled=compile_it))
            bar.update()
        for prompt_point in prompts:
            overheads.append(measure_prompts(prompt_point, repeats))
            bar.update()
    return {"updates": updates, "prompts": overheads}


def figures(raw: dict[str, Any]) -> dict[str, float]:
    """The figures, from the first points (the base points) of the raw measurements."""
    sides = raw["updates"][0]["sides"]
    named = {
        "chain_eager_vs_textbook": ("chain", "vs_textbook"),
        "chain_compiled_vs_textbook": ("chain_compiled", "vs_textbook"),
        "one_step_vs_textbook": ("one_step_fast", "vs_textbook"),
        "one_step_eager_vs_textbook": ("one_step", "vs_textbook"),
        "one_step_compiled_vs_textbook": ("one_step_compiled", "vs_textbook"),
        "share_of_gemm_peak": ("chain", "share_of_gemm_peak"),
    }
    found = {name: sides[side][key] for name, (side, key) in named.items() if side in sides}
    found["prompt_overhead"] = raw["prompts"][0]["overhead"]
    for row in raw["prompts"]:
        if row["prompts"] == 90:
            found["prompt_overhead_two_per_task"] = row["overhead"]
    return found


def plot(raw: dict[str, Any], path: Path) -> None:
    """Updates a second over batch and K, and the prompts' overhead over number and length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    base = raw["updates"][0]
    for axis, key, label in ((axes[0, 0], "batch", "batch"), (axes[0, 1], "num_steps", "K")):
        fixed = "num_steps" if key == "batch" else "batch"
        rows = [row for row in raw["updates"] if row["threads"] == 1 and row[fixed] == base[fixed]]
        plot_sides(axis, rows, key, label, "updates_per_s")
    axes[0, 0].legend()
    first = raw["prompts"][0]
    for axis, key, fixed, label in (
        (axes[1, 0], "prompts", "length", "distinct prompts in a batch of 1024"),
        (axes[1, 1], "length", "prompts", "prompt length, 45 prompts"),
    ):
        line = sorted(
            (row[key], row["overhead"]) for row in raw["prompts"] if row[fixed] == first[fixed]
        )
        axis.plot(*zip(*line, strict=True), marker="o")
        axis.set(xlabel=label, ylabel="extra time over no prompt", ylim=(0, None))
    save_figure(figure, path)


def main() -> int:
    """Measure and write, or measure shortly and print or compare."""
    options = parse_speed_options(__doc__)
    keep_freed_memory()
    points, prompts = grid(options.device, quick=options.quick)
    if options.check:
        raw = run(points[:1], prompts[:1], 5, compiled=False)
        return check_figures("update", figures(raw), tolerance=0.3)
    raw = run(points, prompts, options.repeats, compiled=not options.quick)
    write_speed("update", options, figures(raw), raw, plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
