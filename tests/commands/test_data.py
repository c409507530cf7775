"""The command about data: where it collects to, what it fetches, and what it finds in the cache."""

import pytest

from llmdpd_torchrl.collection.metaworld import CollectionSettings
from llmdpd_torchrl.commands.data import main
from llmdpd_torchrl.data import Manifest
from llmdpd_torchrl.experiments.command import compose_settings
from llmdpd_torchrl.experiments.metaworld import MetaWorld
from llmdpd_torchrl.experiments.run import prepare, run_stage
from llmdpd_torchrl.utils.errors import ConfigError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMDPD_CACHE", str(tmp_path))
    return tmp_path


def test_it_collects_into_the_cache_where_trainings_look(cache, capsys):
    given = ["collect", "--tasks", "reach-v3", "--episodes", "1", "--noise", "0", "--workers", "1"]
    assert main(given) == 0
    settings = CollectionSettings(episodes_per_task=1, noise_levels=[0], steps_after_success=30)
    assert f"data: {settings.folder}\n" in capsys.readouterr().out
    assert list(Manifest.read(settings.folder).tasks) == ["reach-v3"]
    assert main(["list"]) == 0
    root, line = capsys.readouterr().out.splitlines()
    assert root == f"{cache} (LLMDPD_CACHE names another)"
    assert line.startswith("data/metaworld")
    assert "1 tasks, 1 episodes" in line
    assert line.endswith(str(settings.folder))


def test_without_options_it_makes_what_a_training_reads(cache, monkeypatch):
    asked = []

    def collect(folder, tasks, settings=None, **options):
        asked.append((str(folder), set(tasks), settings))
        return Manifest(
            environment="metaworld", settings={}, packages={}, task_table=[],
            observation_layout={}, action_size=4, tasks={},
        )  # fmt: skip

    monkeypatch.setattr("llmdpd_torchrl.collection.metaworld.collect_metaworld", collect)
    monkeypatch.setattr("llmdpd_torchrl.experiments.metaworld.collect_metaworld", collect)

    def stop(*arguments, **options):
        raise ConfigError("no data")

    monkeypatch.setattr("llmdpd_torchrl.data.TrajectoryDataset.load", stop)
    assert main(["collect", "--tasks", "ml10"]) == 0
    cfg = compose_settings("train_metaworld", [f"output_dir={cache / 'output'}"])
    with pytest.raises(ConfigError, match="no data"):
        run_stage(prepare(cfg, MetaWorld()), "collect")
    assert asked[0] == asked[1]


def test_it_lists_all_kinds_with_their_sizes(cache, capsys):
    for name in (
        "data/d4rl/hopper_medium-v2.hdf5", "data/d4rl/.lock", "data/metaworld/half/x.safetensors",
        "models/tiny/layers-2/model.safetensors", "embeddings/abc/embeddings.safetensors",
    ):  # fmt: skip
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_bytes(bytes(2_000_000))
    broken = cache / "data" / "metaworld" / "broken"
    broken.mkdir()
    (broken / "manifest.json").write_text("{")
    assert main(["list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    data = cache / "data"
    assert lines == [
        ["data/d4rl", "2.0", "MB", str(data / "d4rl" / "hopper_medium-v2.hdf5")],
        ["data/metaworld", "0.0", "MB", "damaged", "manifest.json", str(broken)],
        ["data/metaworld", "2.0", "MB", "not", "complete", str(data / "metaworld" / "half")],
        ["models", "2.0", "MB", str(cache / "models" / "tiny")],
        ["embeddings", "2.0", "MB", str(cache / "embeddings" / "abc")],
    ]


def test_an_empty_cache_is_no_mistake(cache, capsys):
    assert main(["list"]) == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_it_fetches_by_name(cache, capsys):
    path = cache / "data" / "d4rl" / "hopper-medium-v2.hdf5"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"put there by hand")
    assert main(["fetch", "hopper-medium-v2"]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert main(["fetch", "hopper-mediun-v2"]) == 2
    assert capsys.readouterr().err.startswith("error: D4RL has no dataset 'hopper-mediun-v2'")
