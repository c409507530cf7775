import pytest
import torch
from tensordict import TensorDict, TensorDictParams
from torchrl.objectives import LossModule

from llmdpd_torchrl.modules.conditioning import (
    ObservationFeatures,
    PromptEncoder,
    PromptNetwork,
    TextHead,
)
from llmdpd_torchrl.modules.trajectory_encoder import TrajectoryEncoder
from llmdpd_torchrl.prompts import text_embedding_table
from llmdpd_torchrl.prompts.tables import PromptTables
from llmdpd_torchrl.tasks import METAWORLD_OBSERVATION_LAYOUT

TABLE = torch.randn(50, 6)


def trajectory_encoder(length=16):
    features = ObservationFeatures(METAWORLD_OBSERVATION_LAYOUT["fields"], ["hand_position"])
    return TrajectoryEncoder(features, 4, length, features=5, width=8, layers=1, heads=2)


def encoder():
    return PromptEncoder(TextHead(TABLE, 3), trajectory_encoder())


def test_text_is_centred_on_the_training_prompts():
    head = TextHead(TABLE * 10 + 100, 3)
    seen = []
    head.network[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    head(TABLE * 10 + 100)
    torch.testing.assert_close(seen[0].mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    assert seen[0].pow(2).mean().sqrt().item() == pytest.approx(1.0, abs=1e-4)


def test_one_training_prompt_is_not_divided_by_zero():
    assert TextHead(TABLE[:1], 3)(TABLE).isfinite().all()


def test_a_trained_head_tells_opposites_apart():
    """Opposites lie close in the language model's space; the head must be able to part them."""
    torch.manual_seed(0)
    names = ["door-lock-v3", "door-unlock-v3", "window-open-v3", "window-close-v3"]
    table = text_embedding_table(names)
    head = TextHead(table, 4)
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(head(table), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert head(table).argmax(-1).tolist() == [0, 1, 2, 3]


def test_padding_changes_nothing(bank):
    module = trajectory_encoder()
    prompts = bank.prompts.clone()
    prompts["mask"][:, 10:] = False
    spoilt = prompts.clone()
    spoilt["observation"][:, 10:] = 7.0
    torch.testing.assert_close(module(prompts), module(spoilt))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_any_batch_shape(bank, shape):
    rows = torch.randint(len(bank), shape)
    text = TABLE[torch.randint(50, shape)]
    z = encoder()(text, bank.prompts[rows])
    assert z.shape == (*shape, 8)


def test_rows_and_prompts_themselves_give_the_same_embedding(bank):
    module = encoder()
    network = PromptNetwork(module, PromptTables(TABLE, bank))
    task, row = torch.randint(50, (9, 1)), torch.randint(len(bank), (9, 1))
    rows = TensorDict({"prompt": {"text_index": task, "trajectory_index": row}}, [9])
    direct = module(TABLE[task.squeeze(-1)], bank.prompts[row.squeeze(-1)])
    torch.testing.assert_close(network(rows)["prompt_embedding"], direct)


def test_each_distinct_prompt_is_encoded_once(bank):
    module = encoder()
    network = PromptNetwork(module, PromptTables(TABLE, bank))
    sizes = []
    module.trajectory.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    index = {"text_index": torch.tensor([[1], [1], [2], [1]]),
             "trajectory_index": torch.tensor([[0], [0], [0], [3]])}  # fmt: skip
    network(TensorDict({"prompt": index}, [4]))
    network(TensorDict({"prompt": {key: -row.sign() for key, row in index.items()}}, [4]))
    assert sizes == [2, 1]


def test_a_part_can_be_left_out(bank):
    text = PromptNetwork(PromptEncoder(TextHead(TABLE, 3), None), PromptTables(TABLE))
    assert text.in_keys == [("prompt", "text_index")]
    tables = PromptTables(trajectories=bank)
    trajectory = PromptNetwork(PromptEncoder(None, trajectory_encoder()), tables)
    assert trajectory.in_keys == [("prompt", "trajectory_index")]
    data = TensorDict({"prompt": {"trajectory_index": torch.tensor([[0], [1]])}}, [2])
    assert trajectory(data)["prompt_embedding"].shape == (2, 5)
    with pytest.raises(ValueError, match="a text head, a trajectory encoder, or both"):
        PromptEncoder(None, None)
    with pytest.raises(ValueError, match="reads trajectory prompts"):
        PromptNetwork(encoder(), PromptTables(TABLE))


def test_the_tables_are_no_state_and_move_along(bank):
    network = PromptNetwork(encoder(), PromptTables(TABLE, bank))
    assert network.state_dict().keys() == {f"encoder.{k}" for k in network.encoder.state_dict()}
    network.double()
    index = {"text_index": torch.tensor([[1]]), "trajectory_index": torch.tensor([[0]])}
    z = network(TensorDict({"prompt": index}, [1]))["prompt_embedding"]
    assert z.dtype == torch.float64
    assert bank.prompts["observation"].dtype == torch.float32  # the caller's stay where they are


def test_the_tables_enter_neither_the_losses_state_nor_its_targets(bank):
    class Loss(LossModule):
        network: PromptNetwork
        network_params: TensorDictParams
        target_network_params: TensorDictParams

    loss = Loss()
    network = PromptNetwork(encoder(), PromptTables(TABLE, bank))
    loss.convert_to_functional(network, "network", create_target_params=True)
    sizes = {tuple(value.shape) for value in loss.state_dict().values()}
    assert sizes
    assert not sizes & {tuple(TABLE.shape), tuple(bank.prompts["observation"].shape)}
    index = {"text_index": torch.tensor([[1]]), "trajectory_index": torch.tensor([[0]])}
    loss.double()  # where .to() of a loss does not reach the network itself
    with loss.network_params.to_module(network):
        z = network(TensorDict({"prompt": index}, [1]))["prompt_embedding"]
    assert z.dtype == torch.float64
