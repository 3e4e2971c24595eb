"""The README says what is so: its commands exist, its figures are those that were measured."""

from __future__ import annotations

import re

from pipeline.settings import REPOSITORY
from tests.benchmarks.tables import RESULTS, with_table

README = (REPOSITORY / "README.md").read_text()


def test_the_readmes_figures_are_the_measured_ones() -> None:
    assert RESULTS.exists()
    assert with_table(README) == README


def test_every_make_target_that_the_readme_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z-]+)", README)) - {"help"}
    assert named <= targets | {"help"}


def test_every_file_that_the_readme_links_is_there() -> None:
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (REPOSITORY / path).exists(), path


def test_every_environment_variable_that_the_readme_names_is_read() -> None:
    code = "".join(path.read_text() for path in (REPOSITORY / "pipeline").glob("*.py"))
    for name in set(re.findall(r"EVERGREEN_[A-Z_]+", README)):
        assert name in code, name


def test_the_mapping_example_of_the_readme_is_a_mapping(tmp_path) -> None:
    from pipeline.sources.mapping import read_mapping

    (example,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "myshop.toml"
    path.write_text(example)
    assert read_mapping(path).columns["item"] == "sku"
