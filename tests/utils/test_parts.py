"""Parts of somebody's own: trained, saved, loaded by consent in a new process."""

import subprocess
import sys
import textwrap

import pytest
import torch

from llmdpd_torchrl.baselines.registry import get_algorithm
from llmdpd_torchrl.modules import NetworkConfig, make_networks
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.prompts import embed_texts, make_text_encoder
from llmdpd_torchrl.utils.errors import ConfigError, UserError
from llmdpd_torchrl.utils.parts import check_trust, target_of

PARTS = """
import torch
from torch import nn
from llmdpd_torchrl.baselines.registry import ALGORITHMS

class Wide(nn.Sequential):
    def __init__(self, action_dim, condition_dim, width=8):
        layers = nn.Linear(action_dim + condition_dim + 1, width), nn.Linear(width, action_dim)
        super().__init__(*layers)

class Lengths:
    def __init__(self, scale=1.0):
        self.identity = {"model": "lengths", "scale": scale}
    def encode(self, texts, *, progress=True):
        scale = self.identity["scale"]
        return torch.tensor([[scale * len(text), 1.0] for text in texts])

class Short(nn.Module):
    def __init__(self, action_dim, condition_dim):
        super().__init__()
    def forward(self, inputs):
        return inputs[..., :1]

ALGORITHM = ALGORITHMS["diffusion_bc"]
NOTHING = 3
"""


@pytest.fixture
def parts(tmp_path, monkeypatch):
    (tmp_path / "own_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LLMDPD_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    sys.modules.pop("own_parts", None)


def make(**settings):
    own = {"denoiser": "own_parts:Wide", "denoiser_options": {"width": 5}}
    return NetworkConfig(**{"prompt": "text", "text_dim": 2, "hidden": [8]} | own | settings)


def test_a_denoiser_and_an_encoder_go_with_the_policy(parts):
    info = {"text_encoder": "own_parts:Lengths", "name": "own"}
    policy = LLMDPDPolicy.from_networks(make(), make_networks(make()), info)
    assert any(value.shape[0] == 5 for value in policy.state_dict().values())
    policy.save_pretrained(parts / "policy")
    script = f"""
        import sys, torch
        sys.path.insert(0, {str(parts)!r})
        from llmdpd_torchrl.policies import LLMDPDPolicy
        try:
            LLMDPDPolicy.from_pretrained({str(parts / "policy")!r})
        except Exception as error:
            print(error)
        print("imported", "own_parts" in sys.modules)
        policy = LLMDPDPolicy.from_pretrained({str(parts / "policy")!r}, trust=["own_parts"])
        torch.manual_seed(0)
        prompted = policy.prompt(text="Go.")
        print(prompted(observation=torch.zeros(1, 39)).tolist())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    refused, imported, action = done.stdout.strip().splitlines()
    assert "its denoiser is own_parts:Wide" in refused
    assert "trust=['own_parts'] or --trust own_parts" in refused
    assert imported == "imported False"
    torch.manual_seed(0)
    prompted = policy.prompt(text="Go.")
    assert prompted(observation=torch.zeros(1, 39)).tolist() == eval(action)


def test_an_encoder_is_asked_by_its_name(parts):
    chosen = {"model": "own_parts:Lengths", "scale": 2.0}
    assert embed_texts(["abc", "a"], chosen)[:, 0].tolist() == [6.0, 2.0]
    with pytest.raises(ConfigError, match="unexpected keyword argument 'size'"):
        make_text_encoder({"model": "own_parts:Lengths", "size": 1})
    with pytest.raises(ConfigError, match="missing 2 required"):
        make_text_encoder("own_parts:Short")


def test_an_algorithm_is_found_by_its_name(parts):
    assert get_algorithm("own_parts:ALGORITHM").actors == ("diffusion",)
    with pytest.raises(ConfigError, match="is a int, not an Algorithm"):
        get_algorithm("own_parts:NOTHING")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"denoiser": "own_parts:Missing"}, "AttributeError"),
        ({"denoiser": "no_such_parts:Wide"}, "ModuleNotFoundError"),
        ({"denoiser": "wide"}, "give module:name of a part of your own"),
        ({"denoiser_options": {"depth": 3}}, "unexpected keyword argument 'depth'"),
        ({"denoiser": "own_parts:Short", "denoiser_options": {}}, r"returned \[2, 1\] for 2 rows"),
        ({"actor": "deterministic"}, "it needs network.actor=diffusion"),
        ({"prompt": "both"}, "with conditioning=retrieved, network.max_residual=null"),
    ],
)
def test_what_is_no_part_is_one_line(parts, settings, says):
    with pytest.raises(UserError, match=says) as raised:
        make_networks(make(**settings))
    assert "\n" not in str(raised.value)


def test_names_of_the_librarys_own_need_no_trust():
    assert target_of("text encoder", "smollm2") is None
    check_trust("text encoder", "smollm2", (), "config.json")
    check_trust("denoiser", "mine.parts:Wide", ["mine"], "config.json")
