import pytest
import torch

from llmdpd_torchrl.modules import KnownTexts, NetworkConfig, TextHead, make_networks
from llmdpd_torchrl.prompts import load_text_prompts, text_embedding_table, wordings_table

TASKS = [*load_text_prompts()]


@pytest.fixture(scope="module")
def known():
    return KnownTexts(torch.stack([text_embedding_table(TASKS), wordings_table(TASKS)]))


def test_each_text_of_the_training_names_its_task(known):
    for style in known.texts:
        weights = known(style)
        assert weights.argmax(-1).tolist() == [*range(len(TASKS))]
        torch.testing.assert_close(weights.sum(-1), torch.ones(len(TASKS)))


def test_other_words_name_the_task_or_none(known):
    free = torch.cat([text_embedding_table(TASKS, variant=variant) for variant in range(3)])
    weights = known(free)
    named = weights.sum(-1) > 0
    right = weights.argmax(-1) == torch.arange(len(TASKS)).repeat(3)
    assert 0.1 < named.float().mean() < 1
    assert right[named].float().mean() > 0.5  # of fifty tasks
    total = weights.sum(-1)
    torch.testing.assert_close(total, named.float())


def test_noise_names_none(known):
    torch.manual_seed(0)
    short = known.texts[1]
    noise = short.mean(0) + (short - short.mean(0)).std() * torch.randn(200, short.shape[-1])
    assert known(noise).any(-1).float().mean() < 0.05


def test_shapes_and_batches(known):
    embeddings = known.texts[1][:6].view(2, 3, -1)
    assert known(embeddings).shape == (2, 3, len(TASKS))
    torch.testing.assert_close(known(embeddings)[1, 2], known(embeddings[1, 2]))


def test_the_only_task_is_named_by_any_text():
    known = KnownTexts(torch.randn(1, 1, 8))
    assert known(known.texts[0]).tolist() == [[1.0]]


def test_the_head_reads_an_unknown_text_as_none(known):
    torch.manual_seed(0)
    head = TextHead(known.texts[0], 8, known=known)
    features = head(known.texts[0])
    assert features.abs().sum(-1).min() > 0
    other = known.texts[0].mean(0) + 100 * torch.randn(576)
    assert not head(other).any()
    torch.testing.assert_close(head(known.texts[1][3]), features[3], atol=0.3, rtol=0.3)


def test_networks_of_a_saved_policy_have_room_for_the_texts():
    config = NetworkConfig(
        prompt="text", hidden=[8], text_mixture=True, text_dropout=0.2, text_styles=2,
        trained_task_ids=[0, 4, 7], text_dim=6,
    )  # fmt: skip
    torch.manual_seed(0)
    trained = make_networks(config, text_embeddings=torch.randn(2, 3, 6))
    loaded = make_networks(config)
    loaded.encoder.load_state_dict(trained.encoder.state_dict())
    assert torch.equal(loaded.encoder.text.known.texts, trained.encoder.text.known.texts)
