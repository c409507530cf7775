"""What of Meta-World's data, tasks and texts a run uses, and which demonstrations it shows."""

from types import SimpleNamespace

import pytest
import torch

from llmdpd_torchrl.data import Manifest, TrajectoryDataset
from llmdpd_torchrl.experiments.command import compose_settings
from llmdpd_torchrl.experiments.evaluate import evaluation_prompts
from llmdpd_torchrl.experiments.metaworld import MetaWorld
from llmdpd_torchrl.experiments.run import fingerprint, prepare, run_stage
from llmdpd_torchrl.utils.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def make_run(folder, *overrides):
    settings = [
        "preset=smoke", "progress=false", f"data.folder={folder / 'data'}", "data.workers=1",
        f"output_dir={folder / 'output'}", "data.noise_levels=[0.0,0.2]", "data.max_steps=300",
        *overrides,
    ]  # fmt: skip
    return prepare(compose_settings("train_metaworld", settings), MetaWorld())


def collected(folder, *overrides):
    run = make_run(folder, *overrides)
    run_stage(run, "collect")
    return run


@pytest.mark.integration
def test_the_first_episodes_or_those_of_one_noise_are_used(folder):
    whole = collected(folder)
    assert whole.dataset.lengths.shape == (8,)
    few = collected(folder, "data.use_episodes=3")
    assert few.dataset.lengths.tolist() == whole.dataset.lengths[[0, 1, 2, 4, 5, 6]].tolist()
    quiet = collected(folder, "data.use_noise=0.0")
    assert quiet.dataset.lengths.tolist() == whole.dataset.lengths[0::2].tolist()
    assert quiet.dataset.transitions["trajectory_id"].unique().tolist() == [0, 1, 2, 3]
    both = collected(folder, "data.use_noise=0.2", "data.use_episodes=1")
    assert both.dataset.lengths.tolist() == whole.dataset.lengths[[1, 5]].tolist()
    assert len({run.fingerprint for run in (whole, few, quiet, both)}) == 4
    with pytest.raises(ConfigError, match=r"no episode is collected with it; data\.noise_levels"):
        make_run(folder, "data.use_noise=0.1")


def test_what_is_as_usual_leaves_the_fingerprint_as_it_was(folder):
    run = make_run(folder)
    tasks = {"split": "smoke", "train": ["reach-v3", "window-open-v3"]}
    identity = run.family.identity(run.cfg)
    assert identity == [{**tasks, "held_out": ["door-close-v3"]}, False]
    assert run.family.identity(make_run(folder, "texts=random").cfg) != identity


@pytest.mark.integration
def test_demonstrations_of_another_expert_lie_apart(folder):
    run = collected(folder)
    usual, support = run.evaluation_prompts.trajectories, run.support_hash
    run.cfg.data.support_expert_gain = 0.5
    run.family.demonstrate(run)
    slow = run.evaluation_prompts.trajectories
    assert (folder / "data" / "support_gain_0.5" / "manifest.json").exists()
    assert run.support_hash != support
    # The prompts of training tasks are as they were; the other expert moves half as much.
    seen = len(run.recorded)
    assert torch.equal(slow.prompts["action"][:seen], usual.prompts["action"][:seen])
    moves = [bank.prompts["action"][seen, :, :3].abs().max() for bank in (usual, slow)]
    assert moves[0] == 1.0
    assert moves[1] <= 0.5
    noisy = collected(folder, "data.support_noise_levels=[0.3]")
    assert (folder / "data" / "support_noise_0.3" / "manifest.json").exists()
    assert noisy.support_hash not in (support, run.support_hash)
    assert noisy.fingerprint == run.fingerprint


def test_training_reads_poorer_copies_and_evaluations_what_was_recorded(folder):
    run = collected(folder)
    recorded, trained = run.recorded, run.training_prompts.trajectories
    assert len(trained) == 3 * len(recorded)
    first = trained.prompts[: len(recorded)]
    assert (first == recorded.prompts.select(*trained.entries)).all()
    assert torch.equal(trained.trajectory_id, recorded.trajectory_id.repeat(3))
    assert not trained.prompts["has_action"].any(-1).all()
    shown = run.evaluation_prompts.trajectories
    seen = torch.isin(shown.task_id, recorded.task_id)
    assert (shown.prompts[seen] == recorded.prompts).all()
    again = collected(folder)
    assert (again.training_prompts.trajectories.prompts == trained.prompts).all()
    other = collected(folder, "seed=1").training_prompts.trajectories.prompts
    assert (other["has_action"] != trained.prompts["has_action"]).any()
    plain = collected(folder, "trajectory_prompt.copies=1", "~network.trajectory_spacing")
    assert len(plain.training_prompts.trajectories) == len(recorded)
    usual = plain.training_prompts.trajectories.prompts["observation"]
    assert not torch.equal(usual, recorded.prompts["observation"])


def test_what_is_without_effect_leaves_the_fingerprint_as_it_was(folder):
    def found(*settings):
        run = make_run(folder, *settings)
        return fingerprint(run.cfg, run.family, "0")

    none = found("prompt=none", "trajectory_prompt.copies=1")
    assert found("prompt=none", "trajectory_prompt.copies=1", "~network.trajectory_spacing") == none
    assert found("prompt=both") != found("~network.trajectory_spacing")
    assert found("prompt=both") != found("trajectory_prompt.copies=2")


def test_only_the_beginning_of_a_demonstration_is_shown(folder):
    run = collected(folder)
    whole = evaluation_prompts(run).trajectories
    before = whole.prompts.clone()
    run.cfg.evaluation.demonstration_fraction = 0.5
    half = evaluation_prompts(run).trajectories
    steps = [bank.prompts["mask"].sum(-1) for bank in (whole, half)]
    assert torch.equal(steps[1], (steps[0] / 2).ceil().long())
    kept = half.prompts["mask"]
    assert torch.equal(half.prompts["observation"][kept], whole.prompts["observation"][kept])
    assert not half.prompts["action"][~kept].any()
    assert (whole.prompts == before).all()


def test_letters_at_random_in_the_texts_place(folder, monkeypatch):
    read = []

    def embed(texts, encoder):
        read.extend(texts)
        return torch.zeros(len(texts), 6)

    monkeypatch.setattr("llmdpd_torchrl.experiments.metaworld.embed_texts", embed)
    run = make_run(folder, "texts=random")
    run_stage(run, "embed")
    assert run.training_prompts.text.shape == (50, 6)
    prompts = run.family.prompts()
    for text, name in zip(read, run.split.table.names, strict=True):
        assert len(text) == len(prompts[name].render())
        assert "Task:" not in text


def test_a_policy_says_that_it_was_trained_on_letters(folder, monkeypatch):
    monkeypatch.setattr(
        "llmdpd_torchrl.experiments.metaworld.embed_texts",
        lambda texts, encoder: torch.rand(len(texts), 6),
    )
    run = collected(folder, "texts=random", "prompt=text", "resume=never")
    for stage in ("embed", "train"):
        run_stage(run, stage)
    assert run.policy.info["texts"] == "random"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("texts=none", "texts is 'none': it must be 'own' or 'random'"),
        ("tasks.count=3", "tasks.count is 3: split 'smoke' has 1 to 2 tasks"),
        ("tasks.count=0", "tasks.count is 0"),
        ("data.use_episodes=half", "data.use_episodes is 'half'"),
        ("data.support_expert_gain=0", "data.support_expert_gain is 0: it must be greater than 0"),
        ("data.support_expert_gain=slow", "data.support_expert_gain is 'slow'"),
        ("data.support_noise_levels=loud", "noise_levels is 'loud'"),
        ("data.support_behaviour={gain: 2.0}", "data.support_behaviour.gain is 2.0: it must be"),
        (
            "data.behaviours=[{},{speed: 2}]",
            r"data.behaviours\[1\].speed: there is no such setting",
        ),
        (
            "data.labels=wanted",
            "data.labels is 'wanted': it must be 'executed', 'expert' or 'auto'",
        ),
        ("evaluation.demonstration_fraction=0", "evaluation.demonstration_fraction is 0"),
    ],
)
def test_wrong_settings_end_in_one_line(folder, override, message):
    with pytest.raises(ConfigError, match=message) as error:
        make_run(folder, override)
    assert "\n" not in str(error.value)


def test_the_expert_s_actions_are_imitated_where_they_are_asked_for(folder):
    executed = collected(folder)
    run = collected(folder, "data.labels=expert", "resume=never", "prompt=trajectory")
    assert run.fingerprint != executed.fingerprint
    assert run.dataset.manifest.data_hash == executed.dataset.manifest.data_hash
    for stage in ("embed", "train"):
        run_stage(run, stage)
    assert run.policy.info["fingerprint"] == run.fingerprint
    small = ["network.sequence.width=16", "network.sequence.layers=1", "trainer.total_updates=2"]
    for name in ("prompt_dt", "mtdiff"):
        run = collected(folder, "data.labels=expert", "resume=never", f"algorithm={name}", *small)
        run_stage(run, "train")
        assert run.policy.info["algorithm"] == name
    message = (
        "algorithm=td3_bc imitates executed actions only; "
        "use llmdpd, diffusion_bc, diffusion_ql, bc, prompt_dt, mtdiff"
    )
    with pytest.raises(ConfigError, match=message):
        make_run(folder, "data.labels=expert", "algorithm=td3_bc", "prompt=none")


@pytest.mark.parametrize(("algorithm", "as_if"), [("bc", "expert"), ("td3_bc", "executed")])
def test_labels_are_the_expert_s_where_the_algorithm_can_imitate_them(folder, algorithm, as_if):
    one, other = (
        collected(folder, f"data.labels={labels}", f"algorithm={algorithm}", "prompt=none")
        for labels in ("auto", as_if)
    )
    assert one.fingerprint == other.fingerprint


def test_data_without_the_expert_s_actions_are_not_taken_for_labels(folder, monkeypatch):
    def load(*args, **kwargs):
        data = TrajectoryDataset.load(*args, **kwargs)
        return TrajectoryDataset(data.manifest, data.transitions.exclude("expert_action"))

    monkeypatch.setattr(
        "llmdpd_torchrl.experiments.metaworld.TrajectoryDataset",
        SimpleNamespace(load=load),
    )
    with pytest.raises(DataError, match=r"data\.labels is 'expert': these data were collected"):
        collected(folder, "data.labels=expert")
    assert len(collected(folder).dataset.lengths) == 8


def test_demonstrations_under_a_behaviour_lie_apart(folder, capsys):
    usual = collected(folder)
    slow = collected(folder, "data.support_behaviour={gain: 0.5}")
    assert (folder / "data" / "support_behaviour_gain_0.5" / "manifest.json").exists()
    pushed = collected(folder, "data.support_behaviour={hand_pushes: 0.02,detour: true}")
    name = "support_behaviour_hand_pushes_0.02_detour_1"
    assert (folder / "data" / name / "manifest.json").exists()
    assert len({run.support_hash for run in (usual, slow, pushed)}) == 3
    assert len({run.fingerprint for run in (usual, slow, pushed)}) == 1
    assert "is demonstrated at gain" not in capsys.readouterr().err
    clash = "data.support_behaviour replaces support_noise_levels and support_expert_gain"
    with pytest.raises(ConfigError, match=clash):
        make_run(folder, "data.support_behaviour={gain: 0.5}", "data.support_expert_gain=0.5")


def test_what_no_slow_expert_can_do_is_demonstrated_faster_and_told(folder, capsys):
    steps = 100  # too few for a slow expert
    few = [f"data.max_steps={steps}", f"data.folder={folder / 'short'}", "data.support_episodes=1"]
    run = collected(folder, *few, "data.support_behaviour={gain: 0.2}")
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("note: door-close-v3 is demonstrated at gain 0.")
    manifest = Manifest.read(folder / "short" / "support_behaviour_gain_0.2")
    gains = [episode["gain"] for episode in manifest.tasks["door-close-v3"].episodes]
    assert gains[:6] == [0.2] * 5 + [0.3]
    assert line.endswith(f"gain {gains[-1]:g}: slower experts do not succeed")
    assert run.evaluation_prompts.trajectories is not None


def test_training_data_of_several_behaviours(folder):
    behaviours = "data.behaviours=[{episodes: 2},{noise: 0.2,gain: 0.5},{hand_pushes: 0.1}]"
    mixed = [f"data.folder={folder / 'mixed'}", behaviours]
    run = collected(folder, *mixed, "data.use_noise=0.2")
    assert len(run.dataset.lengths) == 2
    records = run.dataset.manifest.tasks["reach-v3"].episodes
    assert [episode["gain"] for episode in records] == [1.0, 1.0, 0.5, 1.0]
    # Demonstrations are those of noise_levels, unless support_behaviour says otherwise.
    support = Manifest.read(folder / "mixed" / "support")
    assert support.settings["noise_levels"] == [0.0, 0.2]
    assert "behaviours" not in support.settings
    with pytest.raises(ConfigError, match=r"data\.behaviours has 0, 0\.2"):
        make_run(folder, *mixed, "data.use_noise=0.1")
    run = collected(folder, *mixed, "prompt=trajectory", "resume=never")
    run_stage(run, "train")
    source = "behaviours in turn: episodes 2; episodes 1, gain 0.5, noise 0.2; episodes 1, hand"
    assert source in run.policy.info["data"]


@pytest.mark.integration
def test_the_card_names_behaviours_of_words_and_flags(folder):
    behaviours = "data.behaviours=[{episodes: 2},{expert: scene},{random: true}]"
    run = collected(
        folder, f"data.folder={folder / 'scene'}", behaviours, "prompt=trajectory", "resume=never"
    )
    run_stage(run, "train")
    source = "behaviours in turn: episodes 2; episodes 1, expert scene; episodes 1, random True"
    assert source in run.policy.info["data"]


@pytest.mark.integration
def test_demonstrations_are_changed_and_chosen_for_unseen_tasks_only(folder):
    usual, states, second, plain = (
        collected(folder, *(f"evaluation.{setting}" for setting in given))
        for given in ([], ["demonstration=states_only"], ["demonstration_number=1"],
                      ["recovery=false"])
    )  # fmt: skip
    banks = [run.evaluation_prompts.trajectories for run in (usual, states, second)]
    seen = len(usual.recorded)
    for bank in banks[1:]:
        assert (bank.prompts[:seen] == banks[0].prompts[:seen]).all()
    assert not banks[1].prompts["has_action"][seen:].any()
    assert torch.equal(banks[1].prompts["observation"], banks[0].prompts["observation"])
    assert torch.equal(banks[2].prompts["action"][seen], banks[0].prompts["action"][seen + 1])
    assert banks[0].has_recorded
    assert not plain.evaluation_prompts.trajectories.has_recorded
    assert len({run.support_hash for run in (usual, states, second, plain)}) == 4
    assert len({run.fingerprint for run in (usual, states, second, plain)}) == 1
