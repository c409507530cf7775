"""What the README says runs."""

import re
from pathlib import Path

from llmdpd_torchrl.data import export_d4rl
from llmdpd_torchrl.data.collection import CollectionSettings, collect_metaworld

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_composed_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = CollectionSettings(episodes_per_task=2, max_steps=20)
    collect_metaworld("data_cache/metaworld/train", ["reach-v3", "push-v3"], settings, workers=1)
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    names = {}
    exec(blocks[0].replace("total_updates=1000", "total_updates=2"), names)
    export_d4rl(names["data"], "episodes.hdf5")  # instead of a download
    exec(blocks[1].replace("hopper-medium-v2", "episodes.hdf5"), names)
    observation = names["data"].transitions.select("observation")[:3]
    assert names["policy"](observation)["action"].shape == (3, 4)
    assert len(names["hopper"]) == len(names["data"].transitions)


def test_the_paths_that_it_names_exist():
    root = Path(__file__).parents[1]
    for path in re.findall(
        r"(?:docs|benchmarks/results|configs|llmdpd_torchrl)/[\w./-]*\w", README
    ):
        assert (root / path).exists(), path


def test_ci_runs_the_readmes_test_command():
    assert (
        'pip install -e "\\.\\[test\\]" && ' in (Path(__file__).parents[1] / ".ci/run").read_text()
    )
    assert re.search(r'^pip install -e "\.\[test\]" && .*pytest$', README, re.M)
