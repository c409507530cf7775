import dataclasses

import pytest
import torch

from llmdpd_torchrl.modules.conditioning import ObservationFeatures
from llmdpd_torchrl.modules.retrieved_condition import GatedConditioner, SuggestionAttention
from llmdpd_torchrl.prompts.retrieval_spec import METAWORLD_RETRIEVAL
from llmdpd_torchrl.tasks import METAWORLD_OBSERVATION_LAYOUT

LAYOUT = METAWORLD_RETRIEVAL.layout(METAWORLD_OBSERVATION_LAYOUT["fields"], 4)
FIELDS = {"hand": (0, 2), "thing": (2, 4), "grip": (4, 5)}


def features(**kwargs):
    return ObservationFeatures(FIELDS, ["grip"], [("thing", "hand")], **kwargs)


def test_a_shut_gate_hides_all_but_the_context():
    module = GatedConditioner(features())
    one, other = ([torch.randn(2, 5), torch.randn(2, 3)] for _ in range(2))
    context, shut, opened = torch.randn(2, 4), torch.zeros(2, 1), torch.ones(2, 1)

    def condition(state, gate, context=context):
        return module(state[0], gate, context, state[1])

    assert torch.equal(condition(one, shut), condition(other, shut))
    assert not torch.equal(condition(one, opened), condition(other, opened))
    assert not torch.equal(condition(one, shut), condition(one, shut, context + 1))
    assert condition(one, opened).shape == (2, 3 + 1 + 4 + 3)


@pytest.fixture
def attention():
    torch.manual_seed(0)
    return SuggestionAttention(LAYOUT, hidden=(16,))


def contexts(rows=5, usable=None):
    context = torch.randn(rows, LAYOUT.width)
    flags = torch.rand(rows, LAYOUT.suggestions) < 0.5 if usable is None else usable
    context[:, LAYOUT.parts["usable"]] = flags.float()
    return context


def test_usable_suggestions_are_averaged(attention):
    context = contexts(200)
    usable = context[:, LAYOUT.parts["usable"]] > 0
    weights = attention.weights(context)
    assert (weights[~usable] == 0).all()
    assert (weights[usable] > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(200))
    suggestions = context[:, LAYOUT.parts["suggestions"]].reshape(200, LAYOUT.suggestions, 3)
    grips = context[:, LAYOUT.parts["grips"]].reshape(200, LAYOUT.suggestions, 1)
    actions = torch.cat([suggestions, grips], -1)
    expected = sum(weights[:, i, None] * actions[:, i] for i in range(LAYOUT.suggestions))
    torch.testing.assert_close(attention(context), expected)


def test_weights_read_the_whole_context_and_are_trained(attention):
    context = contexts(usable=torch.ones(5, LAYOUT.suggestions))
    for name, part in LAYOUT.parts.items():
        changed = context.clone()
        changed[:, part] += 1.0
        assert not torch.allclose(attention.weights(changed), attention.weights(context)), name
    attention(context).square().sum().backward()
    for name, parameter in attention.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_without_a_prompt_the_base_is_zero(attention, dtype):
    base = attention.to(dtype)(torch.zeros(3, LAYOUT.width, dtype=dtype))
    assert base.dtype == dtype
    assert (base == 0).all()
    base.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in attention.parameters())


@pytest.mark.parametrize("action_dim", [3, 5])
def test_a_base_is_as_wide_as_actions(action_dim):
    spec = dataclasses.replace(METAWORLD_RETRIEVAL, grip=0.0)
    layout = spec.layout(METAWORLD_OBSERVATION_LAYOUT["fields"], action_dim)
    base = SuggestionAttention(layout, hidden=())(torch.randn(5, layout.width))
    assert base.shape == (5, action_dim)


def test_a_base_and_its_bound_stand_at_the_end(attention):
    module = GatedConditioner(features(), attention, max_residual=0.2)
    observation, context = torch.randn(2, 5), contexts(2)
    gate = torch.tensor([[0.0], [1.0]])
    condition = module(observation, gate, context, torch.randn(2, 3))
    assert condition.shape == (2, 3 + 1 + LAYOUT.width + 3 + 2 * 4)
    base, bound = condition[:, -8:-4], condition[:, -4:]
    assert torch.equal(base[0], attention(context)[0])
    assert (base[1] == 0).all()
    torch.testing.assert_close(bound, torch.tensor([[0.2] * 4, [1.0] * 4]))
    plain = GatedConditioner(module.observation_module)
    assert torch.equal(plain(observation, gate, context), condition[:, : 3 + 1 + LAYOUT.width])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_contexts_are_read_in_the_modules_precision(attention, dtype):
    module = GatedConditioner(features(), attention).to(dtype)
    condition = module(torch.randn(2, 5), torch.zeros(2, 1), contexts(2), torch.randn(2, 3))
    assert condition.dtype == dtype
