"""What the Hub reads from a policy's card, by the Hub's own reader."""

import pytest
from huggingface_hub import EvalResult, ModelCard

from llmdpd_torchrl.modules import NetworkConfig, make_networks
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.utils.errors import ConfigError

RESULTS = [
    {"group": "unseen", "tasks": 5, "measure": "success rate, %", "value": 82.0, "low": 69.0,
     "high": 89.0, "episodes": 50},
    {"group": "seen", "tasks": 1, "measure": "success rate, %", "value": 93.5, "low": None,
     "high": None, "episodes": 1, "note": ", prompted with wrong"},
]  # fmt: skip


@pytest.fixture
def card(tmp_path):
    def card(info, **network):
        config = NetworkConfig(**{"prompt": "text", "text_dim": 6, "hidden": [8], **network})
        policy = LLMDPDPolicy.from_networks(config, make_networks(config), info)
        policy.save_pretrained(tmp_path)
        return ModelCard.load(tmp_path / "README.md")

    return card


def test_a_policy_without_results_claims_none(card):
    found = card({"algorithm": "llmdpd"})
    assert found.data.eval_results is None
    assert found.data.license == "mit"
    assert found.data.language == "en"
    assert found.data.library_name == "llmdpd_torchrl"
    assert found.data.pipeline_tag == "reinforcement-learning"
    assert {"offline-rl", "diffusion-policy"} <= set(found.data.tags)
    assert "Results" not in found.text
    assert "%" not in found.text


def test_the_hub_reads_the_results(card):
    info = {"benchmark": "Meta-World, split quick", "results": RESULTS, "name": "me/mine"}
    found = card({**info, "license": "apache-2.0", "data": "30 | demonstrations"})
    assert found.data.license == "apache-2.0"
    assert found.data.model_name == "me/mine"
    common = {
        "task_type": "reinforcement-learning",
        "dataset_type": "meta-world-split-quick",
        "metric_type": "success_rate",
        "metric_name": "success rate, %",
    }
    assert found.data.eval_results == [
        EvalResult(
            dataset_name="Meta-World, split quick: 5 unseen tasks",
            dataset_split="unseen",
            metric_value=82.0,
            **common,
        ),
        EvalResult(
            dataset_name="Meta-World, split quick: 1 seen task, prompted with wrong",
            dataset_split="seen",
            metric_value=93.5,
            **common,
        ),
    ]
    assert "| 5 unseen tasks | 82 | 69 to 89 | 50 |" in found.text
    assert "| 1 seen task, prompted with wrong | 93.5 | - | 1 |" in found.text
    assert "| data | 30 \\| demonstrations |" in found.text
    assert 'from_pretrained("me/mine")' in found.text


def test_a_policy_without_text_and_diffusion_says_neither(card):
    found = card({"algorithm": "td3_bc"}, prompt="none", actor="deterministic")
    assert found.data.language is None
    assert "diffusion-policy" not in found.data.tags
    assert "policy.prompt()" in found.text


@pytest.mark.parametrize("results", [["82 %"], [{"group": "unseen"}], {"reach": 97}])
def test_malformed_results_are_one_line(card, results):
    with pytest.raises(ConfigError, match="results"):
        card({"results": results})
