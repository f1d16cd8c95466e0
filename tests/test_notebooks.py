"""The notebooks of the documentation run, and show what their code does."""

import re

import pytest

from .support.notebooks import DIGEST, NOTEBOOKS, code_cells, execute, read, source_digest

SITE = "https://wagle-trl.github.io/wagle-trl/"
NAMES = {"unlearn_and_look", "attribution_alone", "publish_and_verify"}
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def kinds(cell) -> set[str]:
    """What a cell shows: text, tables, pictures."""
    return {kind for output in cell.outputs for kind in output.get("data", [output.output_type])}


def test_the_notebooks_are_there():
    assert {path.stem for path in NOTEBOOKS} == NAMES


# Half a minute of a core each: the shortest always runs, all of them in a job of their own
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[] if path.stem == "publish_and_verify" else pytest.mark.slow, id=path.stem)
        for path in NOTEBOOKS
    ],
)
def test_a_notebook_runs_and_shows_what_its_file_shows(path, tmp_path):
    """Numbers differ between machines; which cells show text, tables and pictures does not."""
    stored = [kinds(cell) for cell in code_cells(read(path))]
    assert [kinds(cell) for cell in code_cells(execute(read(path), tmp_path))] == stored


@each_notebook
def test_the_outputs_in_a_notebook_are_of_its_code(path):
    """After a change of the code: `python -m tests.support.notebooks`."""
    notebook = read(path)
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    assert notebook.metadata[DIGEST] == source_digest(notebook)


@each_notebook
def test_a_notebook_is_small_and_names_nothing_of_the_machine_that_ran_it(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert not [part for part in ("/tmp/", "/home/", "/root", "site-packages", "stderr") if part in text]


@each_notebook
def test_links_of_a_notebook_lead_to_pages_that_exist(path):
    """They name the site: relative ones would lead elsewhere on it than in Jupyter."""
    text = "".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert all(link.startswith("https://") for link in links)
    names = [link.removeprefix(SITE).strip("/") for link in links if link.startswith(SITE)]
    assert names
    assert [name for name in names if not list(path.parents[1].glob(f"{name}.*"))] == []
