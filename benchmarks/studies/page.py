"""The page of all studies, made from their definitions and stored files alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.studies.judge import (
    NOT_RUN,
    Side,
    difference,
    judge,
    mean,
    scores,
    seed_means,
    side,
    sides_of,
)
from benchmarks.studies.registry import GROUPS, Arm, Claim, Study
from benchmarks.studies.store import Store
from llmdpd_torchrl.evaluation.results import Table
from llmdpd_torchrl.evaluation.statistics import Estimate

_HEAD = """\
# Results

Written by `python -m benchmarks.studies --page` from the stored files and the definitions of the
studies; no number is typed by hand. Every episode is in the files that the tables link to.

- *Means* are over tasks, every task weighing the same, of all seeds together. The interval of a
  success rate is of the episodes of these policies (Wilson's, combined over tasks), neither of a
  new training nor of new goals; that of a score is Student's over the seeds. Beside the seeds is
  the lowest and the highest seed's mean.
- *Differences* are in points, of the same goals. Their intervals are of seeds and goals, resampled
  crosswise; the same policy under two prompts is compared seed by seed. With three seeds they are
  approximate, with two too narrow, and of one seed they say nothing about another training.
- All intervals are of 95 %, each by itself: of twenty true zeros, one is expected to seem none.
- Always the last checkpoint is evaluated.
- *both* is all that a policy reads: its own prompts, text and trajectory. *paraphrase* and *random
  text* are given without a trajectory, as *text* is.
- No setting was chosen on the unseen tasks. Ours were chosen on training tasks, some of them held
  out (`tasks.split=ml45_validation`), and for TD3+BC and CQL a few were tried
  [in the same way](#settings); Diffusion-QL has ours, the others have their papers', at smaller
  sizes.
- Training seconds are wall times of one thread, the least of the seeds: machines differ, and were
  busy; each training's file says how much.
- *pooled* conditioning is the paper's; *retrieved* is this project's own, so that a claim that is
  confirmed for it alone is not confirmed for the paper's method. By its gate it does not read the
  text of a task that it was not trained on where a trajectory is given: hiding it changes nothing
  there. On this page it is the form that was stored: one relative frame with one suggestion.
  Today's default, with four frames and attention over their suggestions, is measured on
  [every task unseen once](../benchmarks/results/unseen_all.md).

## Claims of the paper

A claim is *confirmed* where the interval of the difference is above 0, *not confirmed* where it is
below or where all episodes are the same, and *not decidable at this budget* otherwise, or where a
trained policy has fewer than three seeds. Where a claim is that something is enough, it may be
worse by a margin, which is stated; where a prompt does not help at all, any part of it is enough,
and the claim says little. *Hidden*: of one policy, a prompt is hidden when it is evaluated;
*trained without*: two policies, as in the paper.
"""


def build_page(
    studies: Mapping[str, Study], claims: Sequence[Claim], store: Store, results: str
) -> str:
    """The page as Markdown.

    Args:
        studies: in the order of the page.
        claims: of the paper.
        store: the stored files.
        results: where the page finds them, relative to itself.
    """
    parts = [_HEAD, claim_table(studies, claims, store).markdown(texts=5), ""]
    for study in studies.values():
        if study.page:
            parts += section(study, store, results)
    return "\n".join(parts).rstrip() + "\n"


def claim_table(studies: Mapping[str, Study], claims: Sequence[Claim], store: Store) -> Table:
    """A row a test of a claim."""
    rows = []
    for claim in claims:
        for test in claim.tests:
            study = studies[test.study]
            found, verdict = judge(store, study, test)
            ours, theirs = (study.find(*key) for key in (test.ours, test.theirs))
            other = "" if ours[0] == theirs[0] else f"{theirs[0].label}: "
            sides = f"{ours[0].label}: {ours[1].label} against {other}{theirs[1].label}"
            margin = f", margin {test.margin:g}" if test.margin else ""
            where = f"[{test.where}](#{test.study})"
            rows.append((claim.text, where, sides, _signed(found) + margin, verdict))
    return Table(("claim", "tested on", "difference of", "points", "verdict"), rows)


def section(study: Study, store: Store, results: str) -> Iterator[str]:
    """All of an study."""
    yield f'<a id="{study.name}"></a>\n\n## {study.title}\n'
    yield f"{study.question} Of the paper: {study.of_the_paper}\n"
    sides = sides_of(study, store)
    yield from finding(study, sides)
    for group in GROUPS:
        there = [s for s in sides if s.arm.group == group and s.runs]
        if there:
            yield arm_table(study, there, store, results).markdown(texts=2) + "\n"
    if study.per_task:
        yield from _all_tasks(study, sides)
    yield from _not_run(study, store)
    yield f"```bash\n{_command(study)}\n```\n"


def summary(study: Study, store: Store) -> Table:
    """A row a variant: its first arm on unseen and on seen tasks."""
    rows = []
    for variant in study.variants:
        found = []
        for group in GROUPS:
            arms = [arm for arm in variant.arms if arm.group == group][:1]
            found += [side(store, study, variant, arm) for arm in arms]
        cells = [mean(study, one).text() if one.runs else NOT_RUN for one in found]
        fewest = min(len(one.runs) for one in found)
        rows.append((variant.label, *cells, str(fewest)))
    unit = "score" if study.measures_scores else "success"
    names = (f"{study.name_of(group)} tasks" for group in GROUPS)
    return Table((f"{unit}, % (95 % interval)", *names, "seeds"), rows)


def finding(study: Study, sides: Sequence[Side]) -> Iterator[str]:
    """What the numbers say, in words: a line a group of tasks and reference."""
    lines = []
    for group in GROUPS:
        there = [s for s in sides if s.arm.group == group and s.runs]
        own = [s for s in there if s.arm == _own(s, group)]
        for reference in there:
            others = [
                other
                for other in there
                if _reference(study, there, other) is reference
                and (other.variant == reference.variant or other in own)
            ]
            if reference in own and reference.variant.name in study.also:
                others += [other for other in own if other not in (reference, *others)]
            compared = [(other, difference(study, reference, other)) for other in others]
            words = _compared(reference, [(o, d) for o, d in compared if d is not None])
            if words:
                where = study.name_of(group)
                lines.append(f"On {where} tasks, {_name(reference, reference)} {words}.")
    nothing = "Nothing to compare yet." if any(s.runs for s in sides) else "Not run yet."
    yield "**Finding.** " + (" ".join(lines) or nothing) + "\n"


def arm_table(study: Study, there: Sequence[Side], store: Store, results: str) -> Table:
    """A row a variant and arm, all of one group."""
    unit = "score" if study.measures_scores else "success, %"
    head = (
        "variant", "prompted with", f"{study.name_of(there[0].arm.group)}: {unit}", "seeds",
        "episodes", "updates", "training, s", "parameters", "points above the reference", "files",
    )  # fmt: skip
    rows = []
    for one in there:
        reference = _reference(study, there, one)
        above = "reference"
        if reference is not None:
            above = _signed(difference(study, one, reference), "other tasks")
        elif not _is_reference(study, one):
            above = "-"
        means = seed_means(study, one)
        spread = f"{len(means)} ({min(means):.0f} - {max(means):.0f})" if means[1:] else "1"
        about = [store.training(study, one.variant, seed) for seed in sorted(one.runs)]
        files = " ".join(
            f"[{seed}]({results}/{_relative(store, study, one, seed)})" for seed in one.runs
        )
        rows.append(
            (
                one.variant.label, one.arm.label, mean(study, one).text(), spread,
                str(sum(len(run) for run in one.runs.values())),
                _least([a.get("updates") for a in about]),
                _least([a.get("train_seconds") for a in about]),
                _least([a.get("parameters") for a in about]), above, files,
            )
        )  # fmt: skip
    return Table(head, rows)


def _reference(study: Study, there: Sequence[Side], one: Side) -> Side | None:
    """What a side is compared with, if it is there and another one."""
    if _is_reference(study, one):
        return None
    arm = study.reference[1]
    for other in there:
        if other.arm.name == arm and other.variant.name == _compared_with(study, one):
            return other
    return None


def _is_reference(study: Study, one: Side) -> bool:
    name = _compared_with(study, one)
    return one.arm.name == study.reference[1] and one.variant.name == name


def _compared_with(study: Study, one: Side) -> str:
    """The name of the variant that one is compared with; it may be its own."""
    return one.variant.reference or study.reference[0] or one.variant.name


def _own(one: Side, group: str) -> Arm:
    """The first arm of a group: what a policy is there for; the others are controls."""
    return next(arm for arm in one.variant.arms if arm.group == group)


def _compared(reference: Side, found: Sequence[tuple[Side, Estimate]]) -> str:
    """What the reference is ahead of, or loses to, the largest difference first."""
    found = sorted(found, key=lambda pair: -abs(pair[1].value))
    verbs = ("is ahead of", "loses to", "is not distinguished from")
    groups: dict[str, list[str]] = {verb: [] for verb in verbs}
    for other, d in found:
        verb = "is not distinguished from"
        if d.low > 0 or d.high < 0:
            verb = "is ahead of" if d.low > 0 else "loses to"
        size = Estimate(-d.value, -d.high, -d.low) if verb == "loses to" else d
        by = f" by {size.text()}" if verb != "is not distinguished from" else f" ({_signed(d)})"
        groups[verb].append(f"{_name(other, reference)}{by}")
    return "; ".join(f"{verb} {', '.join(whom)}" for verb, whom in groups.items() if whom)


def _name(one: Side, reference: Side) -> str:
    """In a sentence about the reference, whose name need not be said again."""
    if one is not reference and one.variant == reference.variant:
        return f"itself prompted with {one.arm.label}"
    trained = one.variant.policy == "trained"
    few = " [one seed]" if trained and len(one.runs) == 1 else ""
    return (
        one.variant.label
        + ("" if one.arm.name == "both" else f" prompted with {one.arm.label}")
        + few
    )


def _all_tasks(study: Study, sides: Sequence[Side]) -> Iterator[str]:
    """A table of all tasks under the reference's arm, folded away."""
    cells: dict[str, dict[str, str]] = {}
    columns: list[str] = []
    for one in sides:
        if one.runs and one.arm.name == study.reference[1]:
            columns += [] if one.variant.label in columns else [one.variant.label]
            for task, rows in scores(study, one).items():
                label = task if one.arm.group == "seen" else f"{task} ({study.groups[0]})"
                cells.setdefault(label, {})[one.variant.label] = f"{rows.mean():.0f}"  # type: ignore[union-attr]
    if columns:
        rows_ = [(task, *(by.get(c, "-") for c in columns)) for task, by in cells.items()]
        table = Table(("task", *columns), rows_).markdown()
        yield f"<details><summary>by task</summary>\n\n{table}\n\n</details>\n"


def _not_run(study: Study, store: Store) -> Iterator[str]:
    """What is missing, by variant."""
    lines = []
    for variant in study.variants:
        missing = {
            seed: store.missing(study, variant, seed)
            for seed in study.seeds_of(variant)
        }  # fmt: skip
        none = [str(seed) for seed, arms in missing.items() if len(arms) == len(variant.arms)]
        parts = [f"seed{'s' if none[1:] else ''} {', '.join(none)}"] if none else []
        parts += [
            f"seed {seed}: {', '.join(_where(study, arm) for arm in arms)}"
            for seed, arms in missing.items()
            if arms and str(seed) not in none
        ]
        if parts:
            needs = f" (needs {variant.needs})" if variant.needs else ""
            lines.append(f"{variant.label}{needs}: {'; '.join(parts)}")
    if lines:
        yield "Not run yet:\n\n" + "\n".join(f"- {line}" for line in lines) + "\n"


def _where(study: Study, arm: Arm) -> str:
    return f"{arm.label} on {study.name_of(arm.group)} tasks"


def _relative(store: Store, study: Study, one: Side, seed: int) -> str:
    path = store.path(study, one.variant, seed, one.arm)
    return path.relative_to(store.root).as_posix()


def _least(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{min(known):.0f}" if known else "-"


def _signed(found: Estimate | None, otherwise: str = NOT_RUN) -> str:
    if found is None:
        return otherwise
    value, low, high = (f"{round(x):+d}" for x in found)  # not by a format, which knows a -0
    return f"{value} ({low} - {high})"


def _command(study: Study) -> str:
    data = " data=DATA" if study.measures_scores else ""
    return f"python -m benchmarks.studies {study.name}{data}"


def figures(studies: Mapping[str, Study], store: Store) -> tuple[dict[str, float], dict[str, str]]:
    """Means and differences to the reference of all stored arms, and the files they are from."""
    found: dict[str, float] = {}
    raw = {}
    for study in (study for study in studies.values() if study.page):
        sides = sides_of(study, store)
        for one in (s for s in sides if s.runs):
            name = f"{study.name}_{one.variant.name}_{one.arm.name}_{one.arm.group}"
            found[name] = mean(study, one).value
            group = [s for s in sides if s.runs and s.arm.group == one.arm.group]
            reference = _reference(study, group, one)
            above = None if reference is None else difference(study, one, reference)
            if above is not None:
                found |= {f"{name}_above": above.value, f"{name}_above_low": above.low}
                found[f"{name}_above_high"] = above.high
            for seed in one.runs:
                path = _relative(store, study, one, seed)
                raw[path.rpartition(".")[0]] = path
    return found, raw
