import pytest
import torch

from llmdpd_torchrl.modules.conditioning import ObservationFeatures
from llmdpd_torchrl.utils.errors import ConfigError

FIELDS = {"hand": (0, 2), "thing": (2, 4), "grip": (4, 5)}


def features(**kwargs):
    return ObservationFeatures(FIELDS, ["grip"], [("thing", "hand")], **kwargs)


def test_kept_fields_and_differences_are_standardised():
    observation = torch.randn(500, 5) * 3 + 1
    module = features(clip=100.0).fit(observation)
    output = module(observation)
    assert output.shape == (500, module.out_features) == (500, 3)
    torch.testing.assert_close(output.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(output.std(0), torch.ones(3), atol=1e-3, rtol=0)
    raw = observation[:, 2:4] - observation[:, :2]
    torch.testing.assert_close(output[:, 1:], (raw - raw.mean(0)) / raw.std(0))


def test_fine_scales_tell_centimetres_apart():
    module = features(scales=(0.02,))
    near, nearer = torch.zeros(2, 5)
    near[2], nearer[2] = 0.02, 0.01
    step = (module(near) - module(nearer)).abs()
    assert module.out_features == 5
    assert step[3].item() == pytest.approx(torch.tanh(torch.tensor(1.0)).item() - 0.4621, abs=1e-3)


def test_a_constant_entry_does_not_explode():
    module = features().fit(torch.zeros(10, 5))
    assert module(torch.ones(5) * 100).abs().max() <= 5


def test_the_statistics_are_saved():
    module = features().fit(torch.randn(50, 5))
    other = features()
    other.load_state_dict(module.state_dict())
    observation = torch.randn(3, 5)
    assert torch.equal(other(observation), module(observation))


@pytest.mark.parametrize(
    ("keep", "differences", "message"),
    [
        (["foot"], [], "unknown .* field 'foot'"),
        ([], [("hand", "grip")], "differ in length"),
    ],
)
def test_wrong_fields(keep, differences, message):
    with pytest.raises(ConfigError, match=message):
        ObservationFeatures(FIELDS, keep, differences)
