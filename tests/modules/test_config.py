import dataclasses
import json

import pytest

from llmdpd_torchrl.modules import NetworkConfig, SequenceConfig
from llmdpd_torchrl.prompts import FrameSpec, RetrievalSpec
from llmdpd_torchrl.utils.errors import ConfigError


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"trained_task_ids": [3, 40], "max_residual": None, "prediction": "v"},
        {"retrieval": RetrievalSpec(frames=(FrameSpec(values=("state",), weights=(None,)),))},
        {"prompt": "none", "retrieval": None},
        {"trajectory_spacing": {"hand_position": 0.01}},
        {"actor": "plan_diffusion", "conditioning": "sequence", "prompt": "trajectory"},
    ],
)
def test_it_survives_json(options):
    config = NetworkConfig(**options)
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    again = NetworkConfig(**values)
    assert json.loads(json.dumps(dataclasses.asdict(again))) == values
    assert list(again.trained_task_ids) == list(config.trained_task_ids)
    assert again.retrieval == config.retrieval
    assert again.sequence == config.sequence


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"actor": "oracle"}, r"network\.actor is 'oracle': it must be 'diffusion', "),
        ({"conditioning": "read"}, r"network\.conditioning is 'read': it must be 'retrieved', "),
        ({"prompt": "song"}, r"network\.prompt is 'song': it must be 'both', "),
        ({"retrieval": None}, "needs relative frames"),
        ({"actor": "plan_diffusion"}, "sequence is for"),
        ({"conditioning": "sequence"}, "sequence is for"),
        ({"critics": 0}, r"network\.critics is 0: it must be greater than or equal to 2$"),
        ({"critic": 3}, r"network\.critic: there is no such setting; network has critics$"),
        ({"retrieval": 3}, r"network\.retrieval is 3: it must be a dictionary or an instance of R"),
        (
            {"retrieval": {"frames": [{"unit": "x"}]}},
            r"retrieval\.frames\[0\]\.unit is 'x': it must",
        ),
        (
            {"retrieval": {"frames": [{"units": 1}]}},
            r"\.frames\[0\]\.units: .*\.frames\[0\] has unit$",
        ),
        ({"max_residual": 0}, r"network\.max_residual is 0: it must be greater than 0"),
        (
            {"prediction": "v"},
            r"network\.prediction is 'v': .* use x0, or network\.max_residual=null$",
        ),
        ({"trajectory_spacing": {"a": 0}}, r"network\.trajectory_spacing\.a is 0: .* greater"),
        ({"text_dropout": 1.0}, r"network\.text_dropout is 1\.0"),
        ({"hidden": [8, 0]}, r"network\.hidden\[1\] is 0: it must be greater"),
        ({"critic_hidden": "8"}, r"network\.critic_hidden is '8': it must be a list"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        NetworkConfig(**options)


@pytest.mark.parametrize(
    "options", [{"prompt": "both"}, {"prompt": "trajectory", "trajectory_dropout": 0.2}]
)
def test_an_actor_that_reads_sequences_needs_its_trajectory(options):
    with pytest.raises(ConfigError, match="reads prompt=trajectory"):
        NetworkConfig(actor="plan_diffusion", conditioning="sequence", **options)


@pytest.mark.parametrize(
    "options", [{"prompt": "text"}, {"conditioning": "pooled"}, {"actor": "gaussian"}]
)
def test_only_a_bounded_residual_is_bound_to_clean_actions(options):
    assert NetworkConfig(prediction="v", **options).prediction == "v"


def test_there_is_no_context_without_relative_frames():
    with pytest.raises(ConfigError, match="no retrieved context"):
        _ = NetworkConfig(prompt="none", retrieval=None).context_layout


@pytest.mark.parametrize(
    ("key", "value"), [("history", 0), ("dropout", 1.0), ("return_scale", 0.0)]
)
def test_sizes_of_sequences_are_checked(key, value):
    with pytest.raises(ConfigError, match=f"network.sequence.{key} is {value}"):
        SequenceConfig(**{key: value})


def test_the_width_of_tokens_is_a_multiple_of_the_heads():
    with pytest.raises(ConfigError, match="multiple"):
        SequenceConfig(width=9, heads=2)


def test_only_what_is_retrieved_is_spaced():
    units = {"hand_position": 0.01}
    config = NetworkConfig(trajectory_spacing=units)
    assert config.spacing.units == units
    assert list(config.spacing.fields["gripper_opening"]) == [3, 4]
    for options in ({"prompt": "text"}, {"conditioning": "pooled"}, {"trajectory_spacing": {}}):
        assert NetworkConfig(**{"trajectory_spacing": units, **options}).spacing is None
