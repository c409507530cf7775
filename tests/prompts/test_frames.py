import pytest
import torch

from llmdpd_torchrl.prompts.frames import FrameSpec, RelativeFrame
from llmdpd_torchrl.prompts.retrieval_spec import METAWORLD_RETRIEVAL
from llmdpd_torchrl.tasks import METAWORLD_OBSERVATION_LAYOUT
from llmdpd_torchrl.utils.errors import ConfigError, DataError

FIELDS = METAWORLD_OBSERVATION_LAYOUT["fields"]
SMALL_FIELDS = {"hand": (0, 2), "cup": (2, 4), "goal": (4, 6), "grip": (6, 7), "joints": (7, 10)}
SPEC = FrameSpec("hand", ("cup", "goal"), ("grip", "joints"), (10.0, 5.0, 1.0, None), unit=0.5)


def test_positions_are_seen_from_each_other_and_values_beside_them():
    observations = torch.randn(50, 10)
    frame = RelativeFrame(SPEC, SMALL_FIELDS)
    hand, cup, goal = observations[:, :2], observations[:, 2:4], observations[:, 4:6]
    expected = torch.cat([hand - cup, cup - goal, observations[:, 6:]], -1)
    torch.testing.assert_close(frame(observations), expected)
    torch.testing.assert_close(frame.values(expected), expected[:, 4:])
    assert (frame.relation_size, frame.anchors, frame.position_dim) == (4, 2, 2)


def test_weights_and_scales():
    frame = RelativeFrame(SPEC, SMALL_FIELDS)
    assert frame.weights.tolist() == [10, 10, 5, 5, 1, 1, 1, 1]
    assert frame.scale.tolist() == [2, 2, 2, 2, 2, 1, 1, 1]
    assert frame.standardised.tolist() == [False] * 5 + [True] * 3


@pytest.mark.parametrize("spec", METAWORLD_RETRIEVAL.frames)
def test_moving_everything_together_changes_nothing(spec):
    observation = torch.randn(39)
    frame = RelativeFrame(spec, FIELDS)
    moved = observation.clone()
    for name in ("hand_position", "object_1_position", "object_2_position", "goal_position"):
        moved[slice(*FIELDS[name])] += torch.tensor([1.0, -2.0, 3.0])
    torch.testing.assert_close(frame(moved), frame(observation), rtol=0, atol=1e-5)


def test_constants_follow_the_module_and_stay_out_of_its_state():
    observations = torch.randn(50, 10)
    frame = RelativeFrame(SPEC, SMALL_FIELDS)
    assert not frame.state_dict()
    assert frame(observations.double()).dtype == torch.float32
    double = RelativeFrame(SPEC, SMALL_FIELDS).double()(observations)
    torch.testing.assert_close(double.float(), frame(observations))
    assert {tensor.device.type for tensor in frame.to("meta").buffers()} == {"meta"}


@pytest.mark.parametrize("width", [9, 11])
def test_an_observation_of_another_width_is_named(width):
    frame = RelativeFrame(SPEC, SMALL_FIELDS)
    with pytest.raises(DataError, match=f"has {width} entries, the relative frame reads 10"):
        frame(torch.zeros(2, width))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "compares nothing"),
        ({"effector": "hand"}, "both an effector and anchors"),
        ({"anchors": ("cup",), "weights": (1.0,)}, "both an effector and anchors"),
        ({"values": ("grip",)}, "has 0 weights: give 1"),
        ({"effector": "hand", "anchors": ("cup",), "weights": (None,)}, "by their spread"),
        ({"values": ("grip",), "weights": (1.0,), "unit": 0.0}, "unit is 0"),
    ],
)
def test_a_frame_without_sense_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        FrameSpec(**arguments)


def test_a_frame_that_does_not_fit_the_observation_is_refused():
    with pytest.raises(ConfigError, match="'cup', which the observation lacks: it has hand"):
        SPEC.sizes({"hand": (0, 2)})
    with pytest.raises(ConfigError, match="positions must have one width"):
        SPEC.sizes(SMALL_FIELDS | {"goal": (4, 7)})
