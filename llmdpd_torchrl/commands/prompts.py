"""``llmdpd prompts``: list, embed and compare text prompts."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from llmdpd_torchrl.utils.errors import UserError, run_command_line
from llmdpd_torchrl.utils.files import write_json, write_tensors

if TYPE_CHECKING:
    from llmdpd_torchrl.prompts import TextEncoder, TextPrompt

# What needs torch is imported in the functions, so that `--help` does not wait for it.


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run_command_line(_parser(), lambda options: options.run(options) or 0, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmdpd prompts",
        description="Text prompts of the tasks and their language-model embeddings.",
        epilog="LLMDPD_CACHE names the folder for models and embeddings (default: the platform's "
        "cache folder). The embeddings of the built-in prompts come with the package.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="print the tasks and their short descriptions")
    source = listing.add_mutually_exclusive_group()
    source.add_argument("--file", type=Path, help="a prompt file, instead of built-in prompts")
    source.add_argument(
        "--suite", default="metaworld", help="built-in: %(default)s (default) or gym_mujoco"
    )
    listing.add_argument(
        "--full", action="store_true", help="print complete prompts with paraphrases"
    )
    listing.set_defaults(run=_list)

    embed = commands.add_parser(
        "embed",
        help="compute the embeddings of a prompt file before training",
        description="Embed all prompts and paraphrases of FILE into the user's cache, so that "
        "training with them needs no language model. With --builtin: regenerate the embeddings in "
        "the package, after an edit of the built-in prompts.",
    )
    source = embed.add_mutually_exclusive_group(required=True)
    source.add_argument("file", type=Path, nargs="?", metavar="FILE", help="a prompt file (YAML)")
    source.add_argument("--builtin", action="store_true", help="regenerate the package's own data")
    _add_encoder(embed)
    embed.set_defaults(run=_embed)

    nearest = commands.add_parser("nearest", help="find the built-in tasks nearest to a text")
    nearest.add_argument("text", metavar="TEXT", help="any description of a task")
    nearest.add_argument("--count", type=int, default=5, help="number of tasks (default: 5)")
    _add_encoder(nearest)
    nearest.set_defaults(run=_nearest)
    return parser


def _add_encoder(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--encoder",
        default="smollm2",
        help="smollm2, minilm, llama-3-8b, olmo-1b, a Hub id, or a model folder (default: smollm2)",
    )
    command.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of the encoder, such as pooling=last_token, layer=last, layers=4, "
        "device_map=auto or quantization=8bit; see HuggingFaceEncoder",
    )


def _encoder(options: argparse.Namespace) -> TextEncoder:
    from llmdpd_torchrl.prompts import make_text_encoder

    settings = {"model": options.encoder}
    for option in options.option:
        name, equals, value = option.partition("=")
        if not equals:
            raise UserError(f"--option {option!r}: write NAME=VALUE")
        try:
            settings[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--option {option!r}: {value!r} is no value of YAML") from None
    return make_text_encoder(settings)


def _list(options: argparse.Namespace) -> None:
    from llmdpd_torchrl.prompts import PROMPT_SUITES, load_text_prompts

    if options.suite not in PROMPT_SUITES:
        raise UserError(f"--suite is {options.suite!r}: use one of {', '.join(PROMPT_SUITES)}")
    for prompt in load_text_prompts(options.file or options.suite).values():
        if options.full:
            print(f"{prompt.name}\n{prompt.render()}")
            print("".join(f"  - {paraphrase}\n" for paraphrase in prompt.paraphrases))
        else:
            print(f"{prompt.name:30} {prompt.task}")


def _embed(options: argparse.Namespace) -> None:
    from llmdpd_torchrl.prompts import embed_texts, load_text_prompts

    if options.builtin:
        if options.encoder != "smollm2" or options.option:
            raise UserError("--builtin is for the embedded model: leave --encoder and --option out")
        _write_package_data(builtin_prompts())
    else:
        given = load_text_prompts(options.file)
        texts = _texts(given.values())
        table = embed_texts(texts, _encoder(options))
        print(f"{len(texts)} texts of {len(given)} tasks embedded, {table.shape[1]} wide")


def _texts(given: Iterable[TextPrompt]) -> list[str]:
    return [text for prompt in given for text in (prompt.render(), *prompt.paraphrases)]


def builtin_prompts() -> list[TextPrompt]:
    """All prompts whose embeddings come with the package: the suites, and speeds up to 6 m/s."""
    from llmdpd_torchrl.prompts import PROMPT_SUITES, load_text_prompts, velocity_prompt

    tasks = [prompt for suite in PROMPT_SUITES for prompt in load_text_prompts(suite).values()]
    return tasks + [velocity_prompt(number / 4) for number in range(1, 25)]


def _write_package_data(given: list[TextPrompt]) -> None:
    from llmdpd_torchrl import prompts
    from llmdpd_torchrl.prompts import SmolLM2Encoder
    from llmdpd_torchrl.prompts.embedding_cache import entry_name, mean_name

    encoder = SmolLM2Encoder()
    folder = Path(prompts.__file__).parent / "embeddings"
    # Computed without package data and cache, so that they are reproducible.
    texts = _texts(given)
    table = encoder.encode(texts)
    entries = {
        entry_name(encoder.identity, text): row.clone()
        for text, row in zip(texts, table, strict=True)
    }
    for wordings in filter(None, (prompt.wordings for prompt in given)):
        entries[mean_name(encoder.identity, wordings)] = encoder.encode(wordings).mean(0)
    write_tensors(folder / "smollm2.safetensors", entries)
    about = {"identity": encoder.identity, "entries": len(entries), "width": table.shape[1]}
    write_json(folder / "smollm2.json", about)
    print(f"{len(entries)} embeddings written to {folder}")


def _nearest(options: argparse.Namespace) -> None:
    from llmdpd_torchrl.prompts import nearest_tasks

    if options.count < 1:
        raise UserError(f"--count must be at least 1, got {options.count}")
    for name, similarity in nearest_tasks(
        options.text, encoder=_encoder(options), count=options.count
    ):
        print(f"{similarity:+.3f}  {name}")
