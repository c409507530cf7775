"""A folder of runs as tables, plots and one HTML page that holds them all."""

from __future__ import annotations

import base64
import html
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llmdpd_torchrl.evaluation.maps import plot_confusion, plot_profiles, plot_prompt_map
from llmdpd_torchrl.evaluation.plots import plot_learning_curves, plot_success_bars
from llmdpd_torchrl.evaluation.runs import Table, Variant, compare, find_runs, task_table, variants
from llmdpd_torchrl.policies import LLMDPDPolicy
from llmdpd_torchrl.prompts import text_embedding_table
from llmdpd_torchrl.tasks.table import METAWORLD_TASKS
from llmdpd_torchrl.utils.errors import DataError
from llmdpd_torchrl.utils.files import write_text

__all__ = ["write_report"]

_TYPES = {".png": "image/png", ".mp4": "video/mp4"}
#: A page that a mail program or a browser tab still takes.
_MOST_BYTES = 25_000_000


@dataclass(frozen=True)
class _Figure:
    """A picture or film of the page."""

    path: Path
    title: str
    explanation: str


def write_report(
    folder: str | os.PathLike[str], output: str | os.PathLike[str] | None = None
) -> Path:
    """Turn all runs below a folder into one report.

    Args:
        folder: of runs, each with a ``results.json`` and, where they are, ``metrics.csv``,
            ``checkpoint/``, ``confusion.json`` and ``*.mp4``.
        output: folder of the report: ``report.html``, which holds everything else, tables as
            ``.md``, ``.csv`` and ``.tex``, and plots. Default: ``report`` in ``folder``.

    Returns:
        the path of the page.

    Raises:
        DataError: if there is no run, or its files are damaged.
    """
    folder = Path(folder)
    output = folder / "report" if output is None else Path(output)
    found = variants(find_runs(folder))
    output.mkdir(parents=True, exist_ok=True)
    tables = {"comparison": compare(found), "tasks": task_table(found)}
    for name, table in tables.items():
        write_text(output / f"{name}.md", table.markdown() + "\n")
        write_text(output / f"{name}.csv", table.csv())
        write_text(output / f"{name}.tex", table.latex())
    figures = _figures(found, output)
    page = output / "report.html"
    write_text(page, _page(folder.resolve().name, found, tables, figures, output))
    return page


def _figures(found: Sequence[Variant], output: Path) -> list[_Figure]:
    figures = []

    def add(path: Path, title: str, explanation: str) -> None:
        figures.append(_Figure(path, title, explanation))

    if len(found) > 1 or len(found[0].summary.tasks) > 1:
        path = output / "profiles.png"
        plot_profiles(found, path)
        add(path, "How results are spread", "The share of tasks (and seeds) whose success rate, or "
            "score, is above the value on the axis: further up and right is better.")  # fmt: skip
    slugs: set[str] = set()
    for variant in found:
        slug = _slug(variant.name)
        if slug in slugs:
            slug += f"-{len(slugs)}"
        slugs.add(slug)
        path = output / f"success-{slug}.png"
        plot_success_bars(variant.summary, path, title=f"Success by task: {variant.name}")
        add(path, f"Success by task: {variant.name}", "Bars are success rates, or mean normalised "
            "scores, over all episodes and seeds, with 95 % intervals. Unseen tasks were never "
            "trained on.")  # fmt: skip
        run = variant.runs[0]
        if (run.folder / "metrics.csv").exists():
            path = output / f"learning-{slug}.png"
            plot_learning_curves(run.folder / "metrics.csv", path)
            add(path, f"Training: {variant.name}, seed {run.seed}", "Losses and other measures "
                "over the updates.")  # fmt: skip
        if (run.folder / "confusion.json").exists():
            path = output / f"confusion-{slug}.png"
            episodes = _draw_confusion(run.folder / "confusion.json", path)
            add(path, f"Tasks under others' prompts: {variant.name}", "Each task's success in "
                f"{episodes} episodes, with the prompts of the task below. A policy that reads its "
                "prompt succeeds on the diagonal only.")  # fmt: skip
        path = output / f"prompts-{slug}.png"
        if _draw_map(variant, path):
            add(path, f"The texts as the policy sees them: {variant.name}", "Each task's text "
                "after the trained head. Tasks that lie close are told alike.")  # fmt: skip
        for film in sorted(run.folder.glob("*.mp4")):
            add(film, f"Episodes: {variant.name}, seed {run.seed}", "The first evaluation goal of "
                "each task, the task's text below, and how it ended. Where actions are drawn, it "
                "is another draw than the evaluation's.")  # fmt: skip
    return figures


def _draw_confusion(file: Path, path: Path) -> int:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        plot_confusion(content["rates"], path, content["episodes"])
        return int(content["episodes"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file} is damaged ({error!r}): evaluate again") from None


def _draw_map(variant: Variant, path: Path) -> bool:
    """Draw the texts after the policy's head, if it has one and its embeddings are stored."""
    folder = variant.runs[0].folder / "checkpoint"
    tasks = [*variant.runs[0].seen, *variant.runs[0].unseen]
    if not (folder / "policy.json").exists() or not set(tasks) <= set(METAWORLD_TASKS.names):
        return False
    policy = LLMDPDPolicy.from_pretrained(folder)
    encoder = policy.info.get("text_encoder")
    if policy.encoder is None or policy.encoder.text is None or encoder != "smollm2":
        return False
    table = text_embedding_table(tasks)
    with torch.no_grad():
        features = policy.encoder.text(table)
    seen = [task in variant.runs[0].seen for task in tasks]
    plot_prompt_map(features, tasks, seen, path)
    return True


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)


def _page(title: str, found: Sequence[Variant], tables: dict[str, Table],
          figures: Sequence[_Figure], output: Path) -> str:  # fmt: skip
    episodes = sum(len(run.episodes) for variant in found for run in variant.runs)
    failed = [e for v in found for run in v.runs for e in run.episodes if e.error is not None]
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{episodes} episodes of {sum(len(v.runs) for v in found)} trained policies. A task is "
        "<em>seen</em> if the policy was trained on it; on an <em>unseen</em> one it acts by its "
        "prompts alone. Numbers in brackets are 95 % intervals.</p>",
        "<h2>Comparison</h2>", _table(tables["comparison"]),
        "<h2>Success (%) or score by task</h2>", _table(tables["tasks"]),
    ]  # fmt: skip
    if failed:
        reasons = sorted({f"{e.task}: {e.error}" for e in failed})
        parts.append(f"<h2>{len(failed)} episodes broke off and count as not solved</h2><ul>")
        parts += [f"<li>{html.escape(reason)}</li>" for reason in reasons] + ["</ul>"]
    left = _MOST_BYTES
    for figure in figures:
        size = figure.path.stat().st_size * 4 // 3  # as text
        embed = size <= left
        left -= size if embed else 0
        parts.append(_figure(figure, output, embed))
    commands = {" ".join(run.about.get("command", [])) for v in found for run in v.runs} - {""}
    parts += [f"<p><code>{html.escape(command)}</code></p>" for command in sorted(commands)]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(row(cells, "td") for cells in table.rows)
    return (
        f'<div class="wide"><table>\n<thead>{row(table.head, "th")}</thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _figure(figure: _Figure, output: Path, embed: bool) -> str:
    title, explanation = html.escape(figure.title), html.escape(figure.explanation)
    if not embed:
        return (
            f"<figure><figcaption><h2>{title}</h2><p>{explanation} Too large for this page: "
            f"<code>{html.escape(os.path.relpath(figure.path, output))}</code>.</p></figcaption>"
            "</figure>"
        )
    kind = _TYPES[figure.path.suffix]
    data = f"data:{kind};base64,{base64.b64encode(figure.path.read_bytes()).decode()}"
    shown = f'<img src="{data}" alt="{title}">'
    if kind.startswith("video"):
        shown = f'<video src="{data}" aria-label="{title}" controls loop muted playsinline></video>'
    return f"<figure><figcaption><h2>{title}</h2><p>{explanation}</p></figcaption>{shown}</figure>"


_STYLE = """
body { margin: 0; font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 0.3rem; overflow-wrap: anywhere; }
p { margin: 0.3rem 0 0.8rem; max-width: 45rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
td { white-space: nowrap; }
figure { margin: 0; }
img, video { max-width: 100%; height: auto; }
code { overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) {
  body { color: #e6e6e6; background: #16181b; }
  th, td { border-color: #444; }
  img { background: #fff; border-radius: 4px; }
}
"""
