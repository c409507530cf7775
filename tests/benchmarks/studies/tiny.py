"""Experiments small enough to be written down in a test."""

HEAD = (
    "title: Tiny\nquestion: Does it run?\nof_the_paper: nothing.\nseeds: [0, 1, 2]\nepisodes: 4\n"
)


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder
