"""``llmdpd record``: record episodes of any Gymnasium environment, to train on or to show."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from llmdpd_torchrl.utils.errors import ConfigError, first_line, run_command_line

if TYPE_CHECKING:
    from llmdpd_torchrl.collection.record import Act
    from llmdpd_torchrl.envs import GymnasiumEnv

EPILOG = """\
POLICY is random; hand, to type each action, numbers with blanks between (an empty line repeats the
last one); MODULE:FUNCTION, a function from an observation to an action in the environment's own
units; or a folder of a policy that was trained here, which --text and --demonstration prompt.

Examples:
  llmdpd record Pendulum-v1 --policy my_controllers:swing_up --episodes 20 --output up.npz
  llmdpd record llmdpd/Corner-v0 --import llmdpd_torchrl.envs.corners --option corner=sw \\
    --policy llmdpd_torchrl.envs.corners:go_sw --success-info is_success --output sw.npz
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Record and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="llmdpd record",
        description="Record episodes of a Gymnasium environment as .npz in D4RL's layout.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("id", metavar="ID", help="of the environment")
    parser.add_argument("--policy", required=True, metavar="POLICY", help="what acts, see below")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="a new .npz")
    parser.add_argument("--episodes", type=int, default=1, metavar="N", help="(default: 1)")
    parser.add_argument(
        "--import", dest="modules", action="append", default=[], metavar="MODULE",
        help="module that registers the environment; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE",
        help="argument of gymnasium.make; may be repeated",
    )  # fmt: skip
    parser.add_argument("--max-steps", type=int, metavar="N", help="time limit of an episode")
    parser.add_argument("--noise", type=float, default=0.0, metavar="STD",
                        help="on actions, as a part of half their range (default: 0)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of starts and noise (default: 0)")
    rules = parser.add_mutually_exclusive_group()
    rules.add_argument("--success-info", metavar="KEY", help="entry of info that says it is solved")
    rules.add_argument("--min-reward", type=float, help="reward of a step that solves it")
    rules.add_argument("--min-return", type=float, help="return that solves it, at the end")
    parser.add_argument(
        "--steps-after-success", type=int, default=0, metavar="N",
        help="that an episode goes on for, so that it shows how to stay there (default: 0)",
    )  # fmt: skip
    parser.add_argument("--text", help="prompt of a trained policy: the task in words")
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE",
                        help="import a part of this package, if the policy names one")  # fmt: skip
    parser.add_argument("--demonstration", metavar="FILE", help="prompt of a trained policy")
    return run_command_line(parser, _run, arguments)


def _run(options: argparse.Namespace) -> int:
    for name, least in (("episodes", 1), ("seed", 0), ("noise", 0.0),
                        ("steps_after_success", 0)):  # fmt: skip
        if not getattr(options, name) >= least:
            option = name.replace("_", "-")
            raise ConfigError(
                f"--{option} is {getattr(options, name)}: it must be at least {least}"
            )
    if options.output.suffix != ".npz" or options.output.exists():
        raise ConfigError(f"--output is {options.output}: name a new file that ends in .npz")
    from llmdpd_torchrl.collection.record import record_episodes, write_episodes
    from llmdpd_torchrl.envs import GymnasiumEnv, SuccessRule, import_modules
    from llmdpd_torchrl.utils.files import make_writable_folder

    import_modules(options.modules, "--import")
    rule = {"info": options.success_info, "min_reward": options.min_reward,
            "min_return": options.min_return}  # fmt: skip
    success = SuccessRule(**rule) if any(value is not None for value in rule.values()) else None
    after = options.steps_after_success
    if after and success is None:
        raise ConfigError(f"--steps-after-success is {after}: say what success is, --min-reward R")
    env = GymnasiumEnv(
        options.id,
        options=dict(map(_option, options.option)),
        success=success,
        stop_on_success=not after,
        max_steps=options.max_steps,
        seed=options.seed,
    )
    make_writable_folder(options.output.parent, "output", "--output")
    act = _policy(options, env)
    arrays = record_episodes(
        env, act, options.episodes, noise=options.noise, steps_after_success=after,
        seed=options.seed,
    )  # fmt: skip
    write_episodes(options.output, arrays)
    ends = arrays["terminals"] | arrays["timeouts"]
    returns = arrays["rewards"].sum() / ends.sum()
    solved = arrays.get("infos/success")
    said = "" if solved is None else f", {int((solved & ends).sum())} of them solved at their end"
    counts = f"{ends.sum()} episodes, {len(ends)} steps, mean return {returns:.1f}"
    print(f"{options.output}: {counts}{said}")
    return 0


def _option(given: str) -> tuple[str, Any]:
    key, equals, value = given.partition("=")
    if not key or not equals:
        raise ConfigError(f"--option is {given!r}: give KEY=VALUE")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        return key, value


def _policy(options: argparse.Namespace, env: GymnasiumEnv) -> Act:
    """What acts, from an observation to an action in the environment's units."""
    name = options.policy
    if (options.text or options.demonstration) and not Path(name).is_dir():
        raise ConfigError(f"--text and --demonstration prompt a trained policy, and {name} is none")
    if name == "random":
        return lambda observation: env.simulator.action_space.sample()
    if name == "hand":
        return _Hand(env)
    if Path(name).is_dir():
        return _trained(options, env)
    module, colon, function = name.partition(":")
    if not colon:
        raise ConfigError(
            f"--policy is {name!r}: give random, hand, MODULE:FUNCTION or a policy's folder"
        )
    from llmdpd_torchrl.envs import import_modules

    import_modules([module], "--policy")
    found = getattr(importlib.import_module(module), function, None)
    if not callable(found):
        raise ConfigError(f"--policy: {module} has no function {function!r}")
    return found


class _Hand:
    """Actions that somebody types."""

    def __init__(self, env: GymnasiumEnv) -> None:
        self.env = env
        self.last = "0 " * len(env.low)

    def __call__(self, observation: Any) -> list[float]:
        print("observation", " ".join(f"{value:.3g}" for value in observation))
        low, high = (" ".join(f"{v:g}" for v in ends) for ends in (self.env.low, self.env.high))
        while True:
            try:
                line = input(f"action, from {low} to {high}: ").strip() or self.last
            except EOFError:
                raise ConfigError("the input ended before the episode did") from None
            try:
                action = [float(number) for number in line.replace(",", " ").split()]
            except ValueError as error:
                print(f"no numbers: {first_line(error)}")
                continue
            if len(action) == len(self.env.low):
                self.last = line
                return action
            print(f"give {len(self.env.low)} numbers")


def _trained(options: argparse.Namespace, env: GymnasiumEnv) -> Act:
    """A policy that was trained here, prompted once."""
    import torch

    from llmdpd_torchrl.data import load_episodes
    from llmdpd_torchrl.experiments.saved_policy import policy_folder
    from llmdpd_torchrl.policies import LLMDPDPolicy

    policy = LLMDPDPolicy.from_pretrained(policy_folder(options.policy), trust=options.trust)
    trajectories: list[Any] = []
    if options.demonstration:
        bounds = env.low.tolist(), env.high.tolist()
        trajectories = [load_episodes(options.demonstration, action_range=bounds).trajectory(0)]
    prompted = policy.prompt(text=options.text, trajectories=trajectories)
    generator = torch.Generator().manual_seed(options.seed)

    def act(observation: Any) -> Any:
        with torch.no_grad():
            state = torch.from_numpy(observation)
            action = prompted(observation=state, generator=generator).numpy()
        return env.low + (action + 1) / 2 * (env.high - env.low)

    return act
