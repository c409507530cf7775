from __future__ import annotations

import math

import pytest
import torch
from torchrl.trainers import TargetNetUpdaterHook

from llmdpd_torchrl.modules import DiffusionActor, make_qvalue_networks
from llmdpd_torchrl.objectives import DiffusionQLLoss
from llmdpd_torchrl.trainers.optimization import TargetUpdater, UpdateSchedule
from llmdpd_torchrl.utils.errors import ConfigError

NETWORKS = ("qvalue_network", "actor_network")


def make_loss() -> DiffusionQLLoss:
    torch.manual_seed(0)
    actor = DiffusionActor(2, 3, in_keys=["observation"], hidden=(8,))
    return DiffusionQLLoss(actor, make_qvalue_networks(3, 2, hidden=(8,)))


def weights(loss, name) -> tuple[torch.Tensor, torch.Tensor]:
    """One trained tensor of a network and its target."""
    sources, targets = getattr(loss, f"{name}_params"), getattr(loss, f"target_{name}_params")
    key = next(key for key, value in sources.items(True, True) if value.requires_grad)
    return sources.get(key).data, targets.get(key).data


def shift(loss, by: float = 1.0) -> None:
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter += by


def test_direction():
    loss = make_loss()
    updater = TargetUpdater(loss, dict.fromkeys(NETWORKS, UpdateSchedule(0.1)))
    before = {name: weights(loss, name)[1].clone() for name in NETWORKS}
    shift(loss)
    updater.step()
    for name in NETWORKS:
        source, target = weights(loss, name)
        torch.testing.assert_close(target, before[name] + 0.1)
        torch.testing.assert_close(source, before[name] + 1.0)


def test_the_default_schedules_are_diffusion_qls():
    loss = make_loss()
    updater = TargetUpdater(loss)
    expected = {name: weights(loss, name)[1].double() for name in NETWORKS}
    for step in range(1, 1013):
        shift(loss, 1e-3)
        updater.step()
        critic, actor = (weights(loss, name)[0].double() for name in NETWORKS)
        expected["qvalue_network"] += 0.005 * (critic - expected["qvalue_network"])
        if step % 5 == 0:
            if step < 1000:
                expected["actor_network"] = actor.clone()
            else:
                expected["actor_network"] += 0.005 * (actor - expected["actor_network"])
        if step in (1, 4, 5, 994, 995, 999, 1000, 1004, 1005, 1012):
            for name in NETWORKS:
                target = weights(loss, name)[1].double()
                torch.testing.assert_close(target, expected[name], rtol=1e-5, atol=1e-5)


def test_every_trained_tensor_follows_and_constants_stay():
    loss = make_loss()
    updater = TargetUpdater(loss, dict.fromkeys(NETWORKS, UpdateSchedule(1.0)))
    constants = loss.target_actor_network_params["module", "schedule", "betas"].clone()
    shift(loss)
    updater.step()
    for name in NETWORKS:
        targets = getattr(loss, f"target_{name}_params")
        for key, source in getattr(loss, f"{name}_params").items(True, True):
            torch.testing.assert_close(targets.get(key).data, source.data)
    assert torch.equal(loss.target_actor_network_params["module", "schedule", "betas"], constants)


def test_a_cast_after_construction_is_followed():
    loss = make_loss()
    updater = TargetUpdater(loss, dict.fromkeys(NETWORKS, UpdateSchedule(1.0)))
    loss.double()
    shift(loss)
    updater.step()
    for name in NETWORKS:
        source, target = weights(loss, name)
        assert target.dtype == torch.float64
        torch.testing.assert_close(target, source)


def test_resuming_continues_the_count_and_keeps_the_loaded_targets():
    schedules = {"qvalue_network": UpdateSchedule(0.1), "actor_network": UpdateSchedule(0.1, 3)}
    first, second = make_loss(), make_loss()
    updater = TargetUpdater(first, schedules)
    shift(first)
    for _ in range(2):
        updater.step()
    second.load_state_dict(first.state_dict())
    resumed = TargetUpdater(second, schedules)
    resumed.load_state_dict(updater.state_dict())
    assert resumed.counter == 2
    for one in (updater, resumed):
        one.step()
    for name in NETWORKS:
        assert torch.equal(weights(first, name)[1], weights(second, name)[1])
    # the third step is the actor's first turn
    source, target = weights(second, "actor_network")
    torch.testing.assert_close(source - target, torch.full_like(target, 0.9))


def test_it_serves_as_a_trainer_hook():
    updater = TargetUpdater(make_loss())
    TargetNetUpdaterHook(updater)()
    assert updater.counter == 1


def test_building_it_silences_the_losses_warning(recwarn):
    loss = make_loss()
    TargetUpdater(loss)
    _ = loss.target_actor_network_params
    assert not [w for w in recwarn if "target network updater" in str(w.message)]


@pytest.mark.parametrize(
    ("schedules", "message"),
    [
        ({"qvalue_network": (0.1, 1, 0)}, "actor_network"),
        ({**dict.fromkeys(NETWORKS, (0.1, 1, 0)), "critic": (0.1, 1, 0)}, "critic"),
        (dict.fromkeys(NETWORKS, (0.0, 1, 0)), r"tau must be in \(0, 1\]"),
        (dict.fromkeys(NETWORKS, (1.1, 1, 0)), r"tau must be in \(0, 1\]"),
        (dict.fromkeys(NETWORKS, (math.nan, 1, 0)), r"tau must be in \(0, 1\]"),
        (dict.fromkeys(NETWORKS, (0.1, 0, 0)), "period at least 1"),
        (dict.fromkeys(NETWORKS, (0.1, 1, -1)), "start not negative"),
    ],
)
def test_mistakes_are_named(schedules, message):
    with pytest.raises(ConfigError, match=message):
        TargetUpdater(make_loss(), schedules)


def test_a_loss_without_targets_needs_none():
    from torchrl.objectives import BCLoss

    loss = BCLoss(DiffusionActor(2, 3, in_keys=["observation"], hidden=(8,)))
    updater = TargetUpdater(loss)
    updater.step()
    assert (updater.schedules, updater.counter) == ({}, 1)
    with pytest.raises(ConfigError, match="give each one schedule"):
        TargetUpdater(loss, {"actor_network": UpdateSchedule(0.1)})
