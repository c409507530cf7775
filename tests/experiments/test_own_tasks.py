"""Task files: what they say, and what is wrong with them, in one line."""

import numpy as np
import pytest

from llmdpd_torchrl.collection.record import record_episodes
from llmdpd_torchrl.envs import GymnasiumEnv, SuccessRule, corners
from llmdpd_torchrl.experiments.own_tasks import OwnTasks
from llmdpd_torchrl.utils.errors import UserError

FILE = """
import: [llmdpd_torchrl.envs.corners]
env: llmdpd/Corner-v0
success: {min_reward: -0.2}
tasks:
  ne: {options: {corner: ne}, data: ne.npz, text: Go to the upper right.}
  nw: {options: {corner: nw}, data: [nw.npz], text: {task: Go left., objective: Be there.}}
held_out:
  sw: {options: {corner: sw}, data: sw.npz, text: Go to the lower left.}
"""


def record(corner, episodes=4):
    rule = SuccessRule(info="is_success")
    env = GymnasiumEnv("llmdpd/Corner-v0", options={"corner": corner}, success=rule)
    return record_episodes(env, corners.go_to(corner), episodes, noise=0.2, progress=False)


@pytest.fixture(scope="module")
def arrays():
    return {corner: record(corner) for corner in ("ne", "nw", "sw")}


@pytest.fixture
def folder(tmp_path, arrays):
    for corner, some in arrays.items():
        np.savez(tmp_path / f"{corner}.npz", **some)
    (tmp_path / "corners.yaml").write_text(FILE)
    return tmp_path


def test_tasks_texts_and_environments(folder):
    own = OwnTasks.read(folder / "corners.yaml")
    assert own.split.train == ("ne", "nw")
    assert own.split.held_out == ("sw",)
    assert own.prompts["ne"].render() == "Go to the upper right."
    assert own.prompts["nw"].render() == "Task: Go left.\nObjective: Be there."
    suite = own.suite(seed=3)
    env = suite.make("sw")
    assert env.rollout(3)["next", "success"].shape == (3, 1)
    assert suite.task_id("sw") == 2
    assert suite.score("sw", -1.0) is None


def test_paths_are_beside_the_file_and_successes_by_its_rule(folder, monkeypatch):
    monkeypatch.chdir("/")
    data = OwnTasks.read(folder / "corners.yaml").load(progress=False)
    assert data.tasks == ("ne", "nw", "sw")
    last = data.starts + data.lengths - 1
    met = data.transitions["next", "reward"][last].squeeze(-1) >= -0.2
    assert data.trajectory_success.tolist() == met.tolist()


def test_without_environments_a_success_column_is_enough(folder):
    (folder / "plain.yaml").write_text("tasks: {ne: {data: ne.npz, text: Go.}}")
    own = OwnTasks.read(folder / "plain.yaml")
    assert not own.evaluates
    assert own.load(progress=False).trajectory_success.all()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("tasks:", "tasks:\n  ne: {data: ne.npz}", "'ne' is there twice, first on line 6"),
        ("held_out:\n  sw", "held_out:\n  ne", "'ne' is among tasks and held_out"),
        ("data: ne.npz, ", "", "tasks.ne.data is missing"),
        ("data: ne.npz", "data: []", "tasks.ne.data is []: it must not be empty"),
        ("data: ne.npz", "data: 3", "tasks.ne.data is 3: it must be a valid list"),
        ("data: ne.npz", "daten: ne.npz", "tasks.ne.daten: there is no such setting"),
        ("import:", "imports_of:", "imports_of: there is no such setting"),
        ("success: {min_reward: -0.2}", "success: {min_reward: high}", "success.min_reward is"),
        ("success: {min_reward: -0.2}", "success: {}", "give one of info, min_reward"),
        ("success: {min_reward: -0.2}", "success: {reward: 1}", "success.reward: there is no such"),
        ("success: {min_reward: -0.2}\n", "", "has neither success nor references"),
        ("success: {min_reward: -0.2}", "references: [1]", "references is [1]"),
        ("text: Go to the upper right.", "text: [Go]", "text of ne is ['Go']"),
        ("text: Go to the upper right.", "text: {tsk: Go}", "text of ne is {'tsk': 'Go'}"),
        ("text: Go to the upper right.", "text: ''", "text of ne: task is ''"),
        (FILE, "tasks: {}", "tasks is {}: it must not be empty"),
        (FILE, "[1, 2]", "is no mapping with the key tasks"),
        (FILE, "tasks: {a: {data: [", "not valid YAML"),
        (FILE, "tasks: !!python/object/apply:os.system [ls]", "not valid YAML"),
        (FILE, "tasks: &a {b: {data: x.npz}}\nheld_out: *a", "aliases (*name) are not read"),
    ],
)
def test_mistakes_in_the_file_are_a_line_that_names_it(folder, old, new, says):
    path = folder / "corners.yaml"
    path.write_text(FILE.replace(old, new))
    with pytest.raises(UserError) as raised:
        OwnTasks.read(path)
    lines = str(raised.value).splitlines()
    assert any(says in line for line in lines)
    assert all(str(path) in line for line in lines)


def test_without_environments_there_is_nothing_to_evaluate_in(folder):
    path = folder / "corners.yaml"
    path.write_text(FILE.replace("env: llmdpd/Corner-v0\n", ""))
    with pytest.raises(UserError, match="no task has an env"):
        OwnTasks.read(path).suite()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: a.pop("rewards"), "has no array 'rewards'"),
        (
            lambda a: a.update(
                observations=a["observations"][:, :1],
                next_observations=a["next_observations"][:, :1],
            ),
            "observations have 1 entries, those of llmdpd/Corner-v0 2",
        ),
        (lambda a: a.update(actions=a["actions"][:, :1]), "actions have 1 entries"),
        (lambda a: a.update(actions=a["actions"] * 5), "action reaches from"),
        (
            lambda a: a.update(
                observations=a["observations"] * 1000,
                next_observations=a["next_observations"] * 1000,
            ),
            "look at their units",
        ),
        (lambda a: a["observations"].__setitem__((3, 0), np.nan), "observation is not finite in 1"),
    ],
)
def test_mistakes_in_the_data_are_a_line(folder, arrays, change, says):
    for corner in arrays:
        some = {key: column.copy() for key, column in arrays[corner].items()}
        change(some)
        np.savez(folder / f"{corner}.npz", **some)
    with pytest.raises(UserError) as raised:
        OwnTasks.read(folder / "corners.yaml").load(progress=False)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("llmdpd/Corner-v0", "llmdpd/Edge-v0", "Edge"),
        (
            "[llmdpd_torchrl.envs.corners]",
            "[no_such_module]",
            "import no_such_module: ModuleNotFoundError",
        ),
        ("corner: ne", "corner: up", "KeyError"),
        ("min_reward: -0.2", "info: solved", "'solved', but a step's info has is_success"),
        ("ne.npz", "no.npz", "there is no such file"),
        ("ne.npz", "corners.yaml", "cannot be read as HDF5"),
    ],
)
def test_mistakes_in_environments_are_a_line(folder, old, new, says):
    path = folder / "corners.yaml"
    path.write_text(FILE.replace(old, new))

    def use():
        own = OwnTasks.read(path)
        own.load(progress=False)
        own.suite().make("ne").rollout(2)

    with pytest.raises(UserError) as raised:
        use()
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
