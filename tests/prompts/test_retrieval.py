import pytest
import torch

from llmdpd_torchrl.data import METAWORLD_OBSERVATION_LAYOUT
from llmdpd_torchrl.prompts.retrieval import PromptRetrieval

FIELDS = METAWORLD_OBSERVATION_LAYOUT["fields"]


def reference(bank, observation, row, lookahead=3, gain=10.0):
    """The same context, one transition at a time and without any algebra."""

    def frame(o):
        return torch.cat([o[:3] - o[4:7], o[4:7] - o[36:39], o[3:4]])

    prompt = bank.prompts[row][bank.prompts[row]["mask"]]
    weights = torch.tensor([10.0] * 3 + [5.0] * 3 + [1.0])
    now = frame(observation)
    frames = [frame(o) for o in prompt["observation"]]
    distances = [(weights * (now - f)).norm() for f in frames]
    i = min(range(len(frames)), key=lambda k: distances[k])
    j = min(i + lookahead, len(frames) - 1)
    return torch.cat(
        [
            prompt["action"][i],
            10 * (now - frames[i]),
            10 * (frames[j] - frames[i]),
            (gain * (frames[j] - now)[:3]).clamp(-1, 1),
            torch.stack([now[6], frames[i][6], frames[j][6]]),
            torch.tensor([i / len(frames), min(distances[i].item(), 3.0)]),
            # Towards where the prompt's hand stood from the goal.
            (
                gain
                * (
                    (prompt["observation"][j, :3] - prompt["observation"][j, 36:39])
                    - (observation[:3] - observation[36:39])
                )
            ).clamp(-1, 1),
        ]
    )


@pytest.mark.parametrize("length", [16, 200])  # cut, and padded
def test_against_one_at_a_time(dataset, length):
    from llmdpd_torchrl.prompts.trajectory import TrajectoryPromptBank

    bank = TrajectoryPromptBank.from_dataset(dataset, length)
    retrieval = PromptRetrieval(bank, FIELDS)
    rows = torch.randint(len(bank), (40,))
    observation = dataset.transitions["observation"][:: len(dataset.transitions) // 40][:40]
    context = retrieval(observation, rows)
    assert context.shape == (40, retrieval.features)
    expected = torch.stack([reference(bank, o, r) for o, r in zip(observation, rows, strict=True)])
    torch.testing.assert_close(context, expected, rtol=1e-4, atol=1e-3)


def test_a_prompts_own_state_is_found_again(bank):
    retrieval = PromptRetrieval(bank, FIELDS)
    observation = bank.prompts["observation"][2, 5]
    context = retrieval(observation, torch.tensor(2))
    assert torch.equal(context[:4], bank.prompts["action"][2, 5])
    torch.testing.assert_close(
        context[-1 - retrieval.goal_features], torch.tensor(0.0), atol=1e-3, rtol=0
    )


def test_it_does_not_see_where_things_are(bank):
    """Moving hand, object and goal together changes nothing."""
    retrieval = PromptRetrieval(bank, FIELDS)
    observation = bank.prompts["observation"][:, 3]
    moved = observation.clone()
    for name in ("hand_position", "object_1_position", "goal_position"):
        moved[:, slice(*FIELDS[name])] += torch.tensor([0.3, -0.2, 0.1])
    rows = torch.arange(len(bank)).flip(0)
    torch.testing.assert_close(
        retrieval(moved, rows), retrieval(observation, rows), rtol=1e-3, atol=1e-3
    )


def test_a_missing_field_is_named(bank):
    with pytest.raises(ValueError, match="goal_position"):
        PromptRetrieval(bank, {k: v for k, v in FIELDS.items() if k != "goal_position"})
