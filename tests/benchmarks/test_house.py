"""The count of files, lines, imports and words."""

from benchmarks import house

FILES = {
    "__init__.py": "from toy.low.a import A\n",
    "low/__init__.py": "from toy.low.a import A\n",
    "low/a.py": "from toy.low import b\n\n\ndef f():\n    import toy.high.c\n",
    "low/b.py": "from .a import A  # learnt anew\n",
    "high/c.py": "from toy.low.b import B\nfrom toy import low\n",
    "high/d.py": '"""What was kept is mended."""\nimport toy.low.a\n',
}


def toy(folder):
    for name, text in FILES.items():
        path = folder / "toy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return house.read_files(folder / "toy")


def test_lines_and_words_are_counted(tmp_path):
    files = toy(tmp_path)
    assert len(files) == 6
    assert sum(file.lines for file in files.values()) == 12
    words = {name: file.dialect_words for name, file in files.items() if file.dialect_words}
    assert words == {"toy.low.b": 2, "toy.high.d": 2}


def test_imports_count_wherever_they_stand_and_not_through_a_package(tmp_path):
    files = toy(tmp_path)
    assert files["toy.low.a"].imports == {"toy.low.b", "toy.high.c"}
    assert files["toy.low.b"].imports == {"toy.low.a"}
    assert files["toy.high.c"].imports == {"toy.low.b"}
    assert files["toy.low"].imports == set()


def test_circles_and_upward_imports(tmp_path):
    files = toy(tmp_path)
    assert house.circles(files) == [["toy.high.c", "toy.low.a", "toy.low.b"]]
    up = house.upward_imports(files, ("low", "high"), {"high": {"low"}})
    assert up == [
        "toy.high.c -> toy.low.b", "toy.high.d -> toy.low.a", "toy.low.a -> toy.high.c",
    ]  # fmt: skip


def test_the_packages_structure_is_measured():
    figures, raw = house.structure()
    assert figures["files"] == len(raw["files"]) > 50
    assert 100 < figures["loss_lines"] < figures["lines"]
    assert figures["upward_imports"] == 0
