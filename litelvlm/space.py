"""A Hugging Face Space of the demo, as a folder, and its upload.

The folder holds the package, the models and pictures it needs, `app.py`, `requirements.txt` in
the form Spaces ask for, and a README whose front matter configures the Space (see Spaces.md).
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from litelvlm.errors import InputError
from litelvlm.families.table import PRESETS
from litelvlm.resources import asset

# Spaces bring these themselves; listing them makes the build fail or picks another version.
PLATFORM = ("gradio", "spaces", "huggingface_hub")
# Spaces choose the build that fits their hardware, so no version is asked for.
UNPINNED = ("torch", "torchvision")
HARDWARE = ("cpu-basic", "zero", "gpu")
ADDRESS = "https://huggingface.co/spaces"
CARD = "card.jpg"  # of assets/: goes with links to the Space
GRADIO = "6.31.0"  # newest version the demo is tested with

APP = '''"""The demo, here and on Hugging Face Spaces; `python app.py --help` lists its options."""

import sys

from litelvlm.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
'''


@dataclass(frozen=True)
class Space:
    """What a Space is to be.

    Attributes:
        model: the model that answers, a name of `families.table.PRESETS`.
        hardware: "cpu-basic", "zero" (ZeroGPU) or "gpu" (a GPU of its own).
    """

    model: str = "nano"
    hardware: str = "cpu-basic"

    def __post_init__(self) -> None:
        if self.hardware not in HARDWARE:
            raise InputError(
                f"hardware must be one of {', '.join(HARDWARE)}, got {self.hardware!r}"
            )
        if self.model not in PRESETS:
            raise InputError(f"model must be one of {', '.join(PRESETS)}, got {self.model!r}")


def front_matter(space: Space, repository: str | None = None) -> str:
    """The YAML block at the top of the Space's README, with its fences.

    Args:
        space: what kind of Space.
        repository: "user/name"; None leaves out the picture that goes with links to it.
    """
    suggested = {"cpu-basic": "cpu-basic", "zero": "zero-a10g", "gpu": "l40sx1"}[space.hardware]
    lines = [
        "title: LiteLVLM",
        "emoji: ✂️",
        "colorFrom: blue",
        "colorTo: yellow",
        "sdk: gradio",
        f"sdk_version: {GRADIO}",
        "app_file: app.py",
        'python_version: "3.12"',
        "short_description: See which image tokens a grounding model needs",
        "license: apache-2.0",
        f"suggested_hardware: {suggested}",
    ]
    if repository:
        lines.append(f"thumbnail: {ADDRESS}/{repository}/resolve/main/assets/{CARD}")
    preset = PRESETS[space.model]
    sources = [source for source in (preset.hub, preset.tower) if source]
    if sources:
        lines.append("startup_duration_timeout: 1h")
        lines += ["models:", *(f"  - {source}" for source in sources)]
        lines += ["preload_from_hub:", *(f"  - {source}" for source in sources)]
    return "\n".join(["---", *lines, "---", ""])


def requirements(lines: list[str]) -> str:
    """The project's requirements in the form Spaces ask for."""
    kept = []
    for line in lines:
        line = line.partition("#")[0].partition(";")[0].strip()
        name = re.split(r"[^A-Za-z0-9_.-]", line)[0].replace("-", "_").lower()
        if line and name not in PLATFORM:
            kept.append(name if name in UNPINNED else line)
    return "\n".join(kept) + "\n"


def assemble(folder: Path, space: Space | None = None, repository: str | None = None) -> list[Path]:
    """Write the Space's files.

    Args:
        folder: where; must be missing or empty.
        space: what kind of Space.
        repository: as for `front_matter`.

    Returns:
        The files written, relative to `folder`, sorted.

    Raises:
        InputError: `folder` is not empty, or the model's weights are not there.
    """
    space = space or Space()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is there already and not empty")
    package = Path(__file__).resolve().parent
    preset = PRESETS[space.model]
    if preset.folder and not (asset(preset.folder) / "config.json").is_file():
        raise InputError(f"{asset(preset.folder)}: no model here to put into the Space")
    folder.mkdir(parents=True, exist_ok=True)
    leave = shutil.ignore_patterns("__pycache__", "*.py[co]", "*.pyi", "assets")
    shutil.copytree(package, folder / "litelvlm", ignore=leave)
    needed = ["examples", *([preset.folder] if preset.folder else [])]
    for name in needed:
        if asset(name).is_dir():
            shutil.copytree(asset(name), folder / "assets" / name, ignore=leave)
    shutil.copy(asset(CARD), folder / "assets" / CARD)
    (folder / "app.py").write_text(APP, encoding="utf-8")
    (folder / "requirements.txt").write_text(requirements(_requirements()), encoding="utf-8")
    readme = front_matter(space, repository) + _README.format(model=space.model)
    (folder / "README.md").write_text(readme, encoding="utf-8")
    licence = package.parent / "LICENSE"
    if licence.is_file():
        shutil.copy(licence, folder / "LICENSE")
    return sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())


def push(folder: Path, repository: str, space: Space | None = None, private: bool = False) -> str:
    """Create the Space if needed, set its model, and upload the folder.

    Args:
        folder: from `assemble`.
        repository: "user/name".
        space: as given to `assemble`.
        private: create it private.

    Returns:
        Address of the Space.

    Raises:
        InputError: the hub refused; not logged in, no such account, no network.
    """
    space = space or Space()
    check_name(repository)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    hub = HfApi()
    try:
        hub.create_repo(
            repository, repo_type="space", space_sdk="gradio", private=private, exist_ok=True
        )
        hub.add_space_variable(repository, "LITELVLM_MODEL", space.model)
        hub.upload_folder(
            repo_id=repository,
            repo_type="space",
            folder_path=folder,
            commit_message="Demo of LiteLVLM",
            delete_patterns=["litelvlm/**", "assets/**"],
        )
    except LocalTokenNotFoundError:
        raise InputError("not logged in to Hugging Face: run `hf auth login` first") from None
    except (HfHubHTTPError, OSError) as fault:
        text = str(fault).strip().splitlines()
        raise InputError(
            f"Hugging Face: {text[0][:160] if text else type(fault).__name__}"
        ) from None
    return f"{ADDRESS}/{repository}"


def check_name(repository: str) -> None:
    """Raise `InputError` unless this is the form of a Space's name, "user/name"."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", repository):
        raise InputError(f"a Space is named USER/NAME, got {repository[:60]!r}")


def _requirements() -> list[str]:
    listing = Path(__file__).resolve().parent.parent / "requirements.txt"
    if listing.is_file():
        return listing.read_text(encoding="utf-8").splitlines()
    return [line for line in metadata.requires("litelvlm") or [] if "extra ==" not in line]


_README = """
# LiteLVLM

Which image tokens does a pixel-grounding vision-language model need? Upload a picture, type a
phrase, move the token budget, and see what is kept, why, and what it costs and saves, beside the
same model with all of its tokens.

Answers come from `{model}`. Uploads are deleted after 20 minutes.

Endpoints for programs: `/ground`, `/compare`, `/sweep` (see "Use via API" at the foot of the page).
"""
