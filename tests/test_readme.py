"""README and docs say what is so: their commands exist, the README's figures are those that were measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.settings import REPOSITORY
from tests.benchmarks.tables import RESULTS, TASKS_PAGE, with_table, with_tasks_tables

README = (REPOSITORY / "README.md").read_text()
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "pipeline" / "docs").glob("*.md"))]


def test_the_readmes_figures_are_the_measured_ones() -> None:
    assert RESULTS.exists()
    assert with_table(README) == README
    assert with_tasks_tables(TASKS_PAGE.read_text()) == TASKS_PAGE.read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_that_a_page_names_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE)) - {"help"}
    assert named <= targets | {"help"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_links_is_there(page: Path) -> None:
    for path in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_that_a_page_has_run_is_one(page: Path) -> None:
    for name in set(re.findall(r"python -m ([a-z_.]+)", page.read_text())):
        assert (REPOSITORY / name.replace(".", "/")).with_suffix(".py").is_file(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_environment_variable_that_a_page_names_is_read(page: Path) -> None:
    code = "".join(path.read_text() for path in (REPOSITORY / "pipeline").glob("*.py"))
    for name in set(re.findall(r"EVERGREEN_[A-Z_]+", page.read_text())):
        assert name in code, name


def test_the_mapping_example_of_the_readme_is_a_mapping(tmp_path) -> None:
    from pipeline.sources.mapping import read_mapping

    (example,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "myshop.toml"
    path.write_text(example)
    assert read_mapping(path).columns["item"] == "sku"
