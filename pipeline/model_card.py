"""The model card of a version: what it is, learnt from, how good it was found, what it is not for, how to load it.

After Mitchell et al., "Model Cards for Model Reporting" (FAT* 2019), written from the ledger, the gate's comparisons
and the log of decisions, never by hand. It is written when the decision has been acted on, because only then all of it
is known, and anew by the watch after a move by hand: as the artifact `model_card.md` of the version's run, which
outlives the version's own files, and, as far as it fits, as the description that MLflow's page shows. It tells what has
happened and stays true; who serves now is said by the aliases.

From a shell: `python -m pipeline.model_card --help`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import pyarrow.dataset as ds

from pipeline.asking import a_person_waits
from pipeline.lake import open_lake
from pipeline.lineage import of_version
from pipeline.packaging import MOST_CHARACTERS
from pipeline.registry import Registry, open_registry
from pipeline.registry_errors import PREFIX, RegistryError
from pipeline.settings import Settings, SettingsError, read_settings
from pipeline.tables import LakeError
from pipeline.tasks.catalogue import entry

CARD = "model_card.md"
COMPARISONS = "comparisons.json"  # beside the checkpoint: the gate's, as it made them

_ROLES = {
    "challenger": "this version", "champion": "champion then", "never_updated": "first of the lineage",
    "baseline": "plain baseline",
}
_Row = Sequence[object]


def write_model_card(learnt: Mapping[str, Any], settings: Settings) -> str:
    """Writes the card of a version into the registry; again: writes it anew.

    Args:
        learnt: what `lineage.of_version` says of the version.
        settings: of the installation.

    Returns:
        The card, Markdown.
    """
    task, version, registry = str(learnt["task"]), int(learnt["version"]), open_registry(settings)
    about = entry(task)
    quality = open_lake(settings).arrow("quality", filter=(
        (ds.field("task") == task) & (ds.field("challenger") == version) & (ds.field("scored_on") == "validation")
    )).to_pylist()
    comparisons = json.loads(registry.read_file(task, version, f"checkpoint/{COMPARISONS}") or "null")
    sections = card_sections(
        learnt, _first_sentence(about.module), about.limits, quality, comparisons,
        registry.package_bytes(task, version),
    )
    card = "\n".join(sections)
    registry.write_card(task, version, CARD, card, _fitting(sections))
    return card


def note_moves(task: str, settings: Settings) -> bool:
    """Writes the champion's card anew where it does not tell yet how that became champion: by hand, or just now.

    Returns:
        whether it did.
    """
    registry = open_registry(settings)
    services = registry.services(task)
    if not services or services[-1].version != registry.champion(task):
        return False
    last = services[-1]
    if _move(last.as_json()) in (registry.read_file(task, last.version, CARD) or ""):
        return False
    write_model_card(of_version(task, last.version, settings, whole=False), settings)
    return True


def card_sections(
    learnt: Mapping[str, Any], about: str, limits: Sequence[str], quality: Sequence[Mapping[str, Any]],
    comparisons: Sequence[Mapping[str, Any]] | None, package_bytes: int,
) -> list[str]:
    """The card's parts, the most wanted first, each with its heading.

    Args:
        learnt: what `lineage.of_version` says of the version.
        about: what the task is.
        limits: what a model of the task is not for.
        quality: rows of the lake's `quality` on the validation examples.
        comparisons: the gate's, in JSON's types; None: not recorded.
        package_bytes: of what consumers load.
    """
    return [
        _head(learnt, about), _decision(learnt), _quality(quality), _use(learnt), _limits(learnt, limits),
        _data(learnt), _compared(comparisons), _form(package_bytes), _settings(learnt["settings"]),
    ]


def _head(learnt: Mapping[str, Any], about: str) -> str:
    origin = f" from version {learnt['parent']}" if learnt["parent"] else " from the pretrained base"
    lines = [f"# {PREFIX}{learnt['task']}, version {learnt['version']}", "", about, ""]
    told = f"newest window {learnt['window']} · code {learnt['code']}"
    lines.append(f"**{learnt['decision']}** · {learnt['kind']}{origin} · {told}")
    if learnt["retired"]:
        lines.append(f"\nIts files were removed: {_cell(learnt['retired'])}")
    return "\n".join([*lines, ""])


def _decision(learnt: Mapping[str, Any]) -> str:
    lines = ["## What was decided", ""]
    beside = f", compared with version {learnt['compared_with']}" if learnt["compared_with"] else ""
    lines += [f"The gate: **{learnt['decision']}**{beside}.", ""]
    lines += [f"- {_cell(reason)}" for reason in learnt["reasons"]]
    if learnt["served"]:
        lines += ["", *_table(("became champion (UTC)", "by", "who", "because"), ()), *map(_move, learnt["served"])]
    return "\n".join([*lines, ""])


def _move(service: Mapping[str, Any]) -> str:
    """How a version became champion, as a row of the card's table."""
    row = (service["since"][:16], service["action"], service["who"], " ".join(service["reasons"]))
    return f"| {' | '.join(map(_cell, row))} |"


def _quality(quality: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (_ROLES[role], row["metric"], f"{row['mean']:.4f}", f"{row['low']:.4f} to {row['high']:.4f}", row["examples"])
        for role in _ROLES for row in quality if row["role"] == role
    ]
    return "\n".join([
        "## Quality", "", "On held-out examples that no compared version has learnt; 95 % intervals over their units.",
        "", *_table(("model", "metric", "mean", "interval", "examples"), rows), "",
    ])


def _use(learnt: Mapping[str, Any]) -> str:
    return "\n".join([
        "## Use", "", "```python", "import mlflow",
        f'model = mlflow.pyfunc.load_model("models:/{PREFIX}{learnt["task"]}/{learnt["version"]}")',
        "answers = model.predict(model.input_example)  # its columns and types: model.metadata.signature", "```", "",
        f"`models:/{PREFIX}{learnt['task']}@champion` is whoever serves. It needs what its requirements.txt names: "
        "neither Airflow nor the lake, and nothing is unpickled.", "",
    ])


def _limits(learnt: Mapping[str, Any], limits: Sequence[str]) -> str:
    own = [
        *limits,
        f"It knows nothing of what happened after {learnt['window']}; the shop's watch measures how fast that ages it.",
        "It has learnt one shop, its customers and prices; elsewhere it is a guess.",
        "User ids in its data are masked; what its weights learnt from a user cannot be taken out of them "
        "(`python -m pipeline.lineage user` names the versions concerned).",
    ]
    return "\n".join(["## Limits", "", *(f"- {line}" for line in own), ""])


def _data(learnt: Mapping[str, Any]) -> str:
    tables = [
        (one["table"], str(one["to"]), f"{_hour(one['first_window'])} to {_hour(one['last_window'])}", one["rows"],
         one["reads"]) for one in learnt["tables"]
    ]
    names = ("taught", "joined", "held_out", "context", "set_aside")
    counts = [(what, *(rows[name] for name in names)) for what, rows in (
        ("this version", learnt["own_rows"]), ("the whole lineage", learnt["rows"]),
    )]
    return "\n".join([
        "## Data", "",
        *_table(("table", "version", "landed windows", "rows", "how"), tables), "",
        *_table(("rows of", "taught", "joined after their span", "held out", "context", "set aside"), counts), "",
        f"First model of its lineage: version {learnt['base']}; every row and window: "
        f"`python -m pipeline.lineage version {learnt['task']} {learnt['version']}`.", "",
    ])


def _compared(comparisons: Sequence[Mapping[str, Any]] | None) -> str:
    lines = ["## What the gate compared", ""]
    if comparisons is None:
        return "\n".join([*lines, "Not recorded, or removed with the version's files.", ""])
    lines += [
        "Differences of this version, with one-sided bounds at the gate's error rate. `old windows` are what it could "
        "have forgotten.", "",
    ]
    return "\n".join([*lines, *_table(("against", "on", "metric", "difference", "bounds", "allowed", "units", ""), [(
        one["against"], one["slice"], one["metric"], f"{one['difference']:+.4f}",
        f"{one['low']:+.4f} to {one['high']:+.4f}", f"{-one['margin']:+.4f}", one["units"],
        "worse" if one["worse"] else "decides" if one["decides"] else "can only reject",
    ) for one in comparisons]), ""])


def _form(package_bytes: int) -> str:
    size = f"{package_bytes / 1e6:.1f} MB" if package_bytes else "no files any more"
    return "\n".join([
        "## Form", "", f"What consumers load: {size}, without the parts that versions share (the text encoder). It is "
        "the form that the gate judged: the figures above are those of what is served.", "",
    ])


def _settings(settings: Mapping[str, Any] | None) -> str:
    lines = [f"- {name}: `{json.dumps(value)}`" for name, value in (settings or {}).items()]
    return "\n".join(["## Settings", "", *(lines or ["Not recorded."]), ""])


def _table(head: _Row, rows: Sequence[_Row]) -> Iterator[str]:
    yield f"| {' | '.join(map(str, head))} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(_cell(cell) for cell in row)} |"


def _cell(value: object) -> str:
    """A value in one line of Markdown, never a table's edge or HTML: names of classes come from people."""
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _hour(time: str | None) -> str:
    return "none" if time is None else time[:13] + "h"


def _first_sentence(module: str) -> str:
    """What a task is: the first line of its module."""
    return (import_module(module).__doc__ or "").strip().partition("\n")[0]


def _fitting(sections: Sequence[str]) -> str:
    """As many whole sections as MLflow's database takes as a description."""
    rest = f"\nThe rest of this card: the artifact `{CARD}` of the run, or `python -m pipeline.model_card`."
    text = "\n".join(sections)
    for count in range(len(sections), 0, -1):
        if len(text) <= MOST_CHARACTERS:
            return text
        text = "\n".join(sections[: count - 1]) + rest
    return text[:MOST_CHARACTERS]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a version's card; returns the process's exit status."""
    from rich.console import Console
    from rich.markdown import Markdown

    parser = argparse.ArgumentParser(prog="python -m pipeline.model_card", description="Prints a version's model card.")
    parser.add_argument("task", help="recommend, demand, …")
    parser.add_argument("version", type=int, nargs="?", help="the version (default: the champion)")
    parser.add_argument("--anew", action="store_true", help="write it anew into the registry first")
    chosen = parser.parse_args(arguments)
    try:
        settings = read_settings()
        with a_person_waits(settings.tracking_uri):
            card = _card(open_registry(settings), chosen.task, chosen.version, settings, anew=chosen.anew)
    except (RegistryError, SettingsError, LakeError) as error:
        Console(stderr=True).print(str(error), style="red", highlight=False, markup=False)
        return 1
    console = Console()
    console.print(Markdown(card)) if console.is_terminal else print(card.rstrip())
    return 0


def _card(registry: Registry, task: str, version: int | None, settings: Settings, *, anew: bool) -> str:
    """The card as it is stored; written where there is none yet."""
    version = registry.champion(task) if version is None else version
    if version is None:
        raise RegistryError(f"{PREFIX}{task} has no champion yet: run the DAG retrain_{task}, or name a version.")
    held = registry.read_file(task, version, CARD)
    if held and not anew:
        return held
    learnt = of_version(task, version, settings, whole=False)
    if held and learnt["retired"]:  # what the gate compared went with its files
        return held
    return write_model_card(learnt, settings)


if __name__ == "__main__":
    sys.exit(main())
