"""``llmdpd check-env``: whether policies can be trained and evaluated on an environment."""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llmdpd_torchrl.utils.errors import ConfigError, UserError, first_line, run_command_line

if TYPE_CHECKING:
    from llmdpd_torchrl.envs.checks import Finding


def main(arguments: Sequence[str] | None = None) -> int:
    """Check and return the exit code: 1 if there is a fault."""
    parser = argparse.ArgumentParser(
        prog="llmdpd check-env",
        description="Check an environment: specs, dtypes, action bounds, determinism, rewards, "
        "success and time limit. A line per finding; exit code 1 if one is a fault.",
    )
    parser.add_argument(
        "id", metavar="ID", help="door-lock-v3, Hopper-v4, halfcheetah-vel-2, or any Gymnasium id"
    )
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="module that registers the environment; may be repeated",
    )
    parser.add_argument("--steps", type=int, default=1000, help="longest episode (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the episodes (default: 0)")
    return run_command_line(parser, _run, arguments)


def _run(options: argparse.Namespace) -> int:
    for name, least in (("steps", 2), ("seed", 0)):
        if getattr(options, name) < least:
            raise ConfigError(f"--{name} is {getattr(options, name)}: it must be at least {least}")
    from llmdpd_torchrl.envs import import_modules
    from llmdpd_torchrl.envs.checks import Finding, check_environment

    import_modules(options.modules, "--import")

    logging.getLogger("torchrl").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old versions of environments
        try:
            env, limit, has_success = _make(options.id)
        except UserError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            return _show(Finding("simulator", f"it cannot be made and stepped: {reason}", True))
        faults = [
            _show(finding)
            for finding in check_environment(
                env, time_limit=limit, steps=options.steps, seed=options.seed
            )
        ]
        success = "each step says" if has_success else "returns are compared, as no step says"
        _show(Finding("success", f"{success} whether the task is solved"))
        env.close()
    return max(faults)


def _show(finding: Finding) -> int:
    print(f"{'FAULT' if finding.is_fault else 'ok':6}{finding.name:13}{finding.text}")
    return int(finding.is_fault)


def _make(name: str) -> tuple[Any, int | None, bool]:
    """The environment, its time limit, and whether it says that the task is solved."""
    import gymnasium
    from torchrl.envs import GymWrapper

    from llmdpd_torchrl.envs import (
        GYM_MUJOCO_TASKS,
        GymMujocoEnv,
        HalfCheetahVelocityEnv,
        MetaWorldEnv,
    )
    from llmdpd_torchrl.prompts import task_velocity
    from llmdpd_torchrl.tasks import METAWORLD_TASKS

    speed = task_velocity(name)
    if name in METAWORLD_TASKS.names:
        return MetaWorldEnv(name, num_goals=2), 500, True
    if name in GYM_MUJOCO_TASKS:
        return GymMujocoEnv(name), 1000, False
    if speed is not None:
        return HalfCheetahVelocityEnv(speed), 200, False
    try:
        simulator = gymnasium.make(name)
        simulator.reset(seed=0)
        info = simulator.step(simulator.action_space.sample())[-1]
    except gymnasium.error.UnregisteredEnv as error:
        raise ConfigError(
            f"{first_line(error)} (an environment of your own: --import the module that registers "
            "it; Meta-World's tasks are named as in `llmdpd prompts list`)"
        ) from None
    except gymnasium.error.Error as error:
        raise ConfigError(f"{name}: {first_line(error)}") from None
    spec = simulator.spec
    has_success = bool({"success", "is_success"} & info.keys())
    return GymWrapper(simulator), spec.max_episode_steps if spec else None, has_success
