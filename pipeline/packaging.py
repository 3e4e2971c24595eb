"""What a model version carries beside its arrays: code under a name of its own, its origin, a page for people.

Pure functions over folders and tags: `registry.py` calls them when it stores a version.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from pipeline.settings import REPOSITORY

# MLflow's database holds a description of 5,000 characters, and older ones a tag of 5,000.
MOST_CHARACTERS = 5_000


def content_hash(folder: Path) -> str:
    """The SHA-256 of a folder's files, by path and content."""
    whole = hashlib.sha256()
    for path in sorted(_files(folder)):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{content}  {path.relative_to(folder).as_posix()}\n".encode())
    return whole.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def renamed(folder: Path, into: Path) -> Path:
    """A copy of a code folder under a name that says its content, so that two of them live in one process."""
    copy = into / f"evergreen_{folder.name}_{content_hash(folder)[:12]}"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def code_version() -> str:
    """The commit of the code that runs; where that does not tell it (edited, or installed), with its content's hash."""
    if (REPOSITORY / ".git").exists():
        done = subprocess.run(
            ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, check=False,
        )
        commit = done.stdout.strip()
        if done.returncode == 0 and not commit.endswith("-dirty"):
            return commit
        if done.returncode == 0:
            return f"{commit} {_source_hash()}"
    return f"evergreen {metadata.version('evergreen')} {_source_hash()}"


def _source_hash() -> str:
    folders = (content_hash(REPOSITORY / name) for name in ("pipeline", "models"))
    return "source:" + hashlib.sha256("".join(folders).encode()).hexdigest()[:16]


def description(tags: Mapping[str, str], metrics: Mapping[str, float]) -> str:
    """What a person wants to know of a version, in Markdown."""
    parent = tags.get("evergreen.parent")
    decision, kind = tags.get("evergreen.decision", "undecided"), tags.get("evergreen.kind", "model")
    origin = f" from version {parent}" if parent else ""
    lines = [
        f"**{decision}** · {kind}{origin} · newest window {tags.get('evergreen.window', 'unknown')}", "",
        *(f"- {reason}" for reason in json.loads(tags.get("evergreen.reasons", "[]"))), "",
    ]
    if "evergreen.task" in tags:
        lines += ["All that it learnt, and from which rows: `python -m pipeline.lineage version "
                  f"{tags['evergreen.task']} <this version>`", ""]
    if metrics:
        lines += ["| on the validation examples | mean |", "|---|---|"]
        lines += [f"| {name} | {value:.4f} |" for name, value in sorted(metrics.items())]
    text = "\n".join(lines)
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 2] + " …"
