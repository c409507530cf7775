"""Studies' variants as Hydra's experiments: what is committed is what the definitions say."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from benchmarks.studies import experiments, runner
from benchmarks.studies.registry import read_studies
from benchmarks.studies.store import Store
from llmdpd_torchrl.experiments.command import compose_settings
from llmdpd_torchrl.experiments.config import plain

STUDIES = read_studies(Path(experiments.__file__).parent / "definitions")


def test_the_committed_files_are_those_of_the_definitions(tmp_path):
    experiments.write(STUDIES, tmp_path)
    for folder in (tmp_path, experiments.FOLDER):
        found = {p.relative_to(folder).as_posix(): p.read_text() for p in folder.glob("*/*.yaml")}
        assert found == experiments.experiments(STUDIES), (
            "python -m benchmarks.studies --experiments"
        )


def test_files_of_removed_variants_are_removed(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "variant.yaml").write_text("")
    (tmp_path / "pooled.yaml").write_text("")
    experiments.write(STUDIES, tmp_path)
    assert not (tmp_path / "old" / "variant.yaml").exists()
    assert (tmp_path / "pooled.yaml").exists()  # no study's


@pytest.mark.parametrize("study", ["comparison", "data", "encoders", "settings", "unseen"])
def test_an_experiment_is_the_configuration_of_the_studys_job(study):
    place = runner.Place(Store(Path("results")), Path("data"), Path("outputs"))
    for name in experiments.experiments({study: STUDIES[study]}):
        chosen = name.removesuffix(".yaml")
        cfg = plain(compose_settings("train_metaworld", [f"+experiment={chosen}"]))
        (variant,) = (v for v in STUDIES[study].variants if f"{study}/{v.name}" == chosen)
        wanted = plain(runner.Job(STUDIES[study], variant, cfg["seed"]).read(place))
        for key in ("folder", "workers"):
            assert cfg["data"].pop(key) is None or wanted["data"][key] is not None
            wanted["data"].pop(key)
            cfg["evaluation"].pop(key, None), wanted["evaluation"].pop(key, None)
        for key in ("name", "changes", "output_dir"):
            assert cfg.pop(key) != wanted.pop(key)
        assert cfg == wanted, chosen


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ([], ("pooled", 32, 2, "ml45_validation")),
        (["conditioning=retrieved"], ("retrieved", 160, 8, "ml45_validation")),
        (["task_suite=ml10"], ("pooled", 32, 2, "ml10")),
    ],
)
def test_a_group_on_the_command_line_replaces_an_experiments_choice(given, found):
    cfg = compose_settings("train_metaworld", ["+experiment=unseen_validation/pooled", *given])
    prompt = cfg.trajectory_prompt
    assert (cfg.network.conditioning, prompt.length, prompt.per_task, cfg.tasks.split) == found


@pytest.mark.parametrize("name", experiments.experiments(STUDIES))
def test_experiments_set_no_value_that_is_a_groups_choice(name):
    values = OmegaConf.load(experiments.FOLDER / name)
    assert OmegaConf.select(values, "network.conditioning") is None
    keys = ("trajectory_prompt.length", "trajectory_prompt.per_task", "trajectory_prompt.copies")
    for key in (*keys, "tasks.split", "text_encoder", "logger", "algorithm"):
        assert OmegaConf.select(values, key) is None
