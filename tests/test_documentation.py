"""The pages of the documentation: their code runs, their links lead somewhere, and every public name is explained."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from datasets import Dataset

from wagle_trl import MaskConfig, NPOConfig, NPOTrainer
from wagle_trl.cli.main import COMMANDS, main
from wagle_trl.cli.parser import WagleParser
from wagle_trl.demo.people import people_rows, rows_by_group

from .support.code_blocks import blocks, run
from .support.hub import Blob, Repository

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SITE = "https://wagle-trl.github.io/wagle-trl/"
REPOSITORY = "https://github.com/wagle-trl/wagle-trl/"
TOFU_MODEL = "open-unlearning/tofu_Llama-3.2-1B-Instruct_full"
_LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


@pytest.fixture(scope="session")
def demo_people(tmp_path_factory, tiny_model, tiny_tokenizer):
    """What `wagle demo` leaves of its people, from a tiny model that knows nothing and runs of two steps."""
    folder = tmp_path_factory.mktemp("demo") / "people"
    tiny_model(max_position_embeddings=256).save_pretrained(folder / "base")
    tiny_tokenizer.save_pretrained(folder / "base")
    rows = rows_by_group(people_rows(6, 0), {"forget": 1, "retain": 3, "unseen_retain": 2})
    rows = {name: [{key: row[key] for key in ("question", "answer")} for row in found] for name, found in rows.items()}
    for name, found in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    masks = {"masked": MaskConfig("wagle", 0.05), "random": MaskConfig("random", 0.05), "dense": None}
    for name, mask in masks.items():
        trainer = NPOTrainer(
            str(folder / "base"),
            NPOConfig(
                str(folder / name),
                max_steps=2,
                trajectory_steps=1,
                save_delta=mask is not None,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                gradient_checkpointing=False,
            ),
            train_dataset=Dataset.from_list(rows["forget"]),
            retain_dataset=Dataset.from_list(rows["retain"]),
            eval_dataset={"unseen_retain": Dataset.from_list(rows["unseen_retain"])},
            mask_config=mask,
        )
        trainer.train()
        trainer.save_model()
        trainer.create_model_card()
    return folder


@pytest.fixture
def as_a_reader(demo_people, hub, tmp_path, monkeypatch):
    """
    Work in a copy of the demo's folder, with trainings that are short by default, and a Hub on this machine. It has the base
    model under the names of the pages; TOFU is the demo's rows.
    """
    shutil.copytree(demo_people, tmp_path / "demo-output" / "people")
    monkeypatch.chdir(tmp_path / "demo-output" / "people")
    monkeypatch.setattr("wagle_trl.unlearning.defaults.STEPS", 2)
    monkeypatch.setattr("wagle_trl.unlearning.defaults.EPOCHS", 1)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    model = {path.name: Blob(path.read_bytes(), is_lfs=False) for path in (demo_people / "base").iterdir()}
    for name in (TOFU_MODEL, "user/base"):
        hub.repositories[name] = Repository(name, private=False)
        hub.repositories[name].add_commit("main", model, "model")
    load_dataset = datasets.load_dataset
    tofu = {"forget10": "forget.jsonl", "retain90": "retain.jsonl"}

    def load(path, name=None, **options):
        given = ("json", None, str(demo_people / tofu[name])) if path == "locuslab/TOFU" else (path, name, None)
        return load_dataset(*given[:2], **({"data_files": given[2]} if given[2] else {}) | options)

    monkeypatch.setattr("datasets.load_dataset", load)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page, as_a_reader):
    run(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_block_that_does_not_run_says_why(page):
    marked = [block for block in blocks(page) if block.mark == "not run"]
    assert [block.line for block in marked if len(block.about or "") < 8] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_code_block_is_found(page):
    """One with another fence, or an end that is missing, would be neither run nor refused."""
    fences = re.findall(r"^\s*(?:```|~~~)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) == 2 * len(blocks(page))


def test_options_that_the_pages_name_exist(monkeypatch):
    """Also in sentences, and in blocks that do not run."""
    parsers = []
    monkeypatch.setattr(WagleParser, "print_help", lambda parser, *args: parsers.append(parser))
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help-all"])
    known = {option for parser in parsers for option in parser._option_string_actions}
    known |= {"--config", "--debug", "--help-all", "--json"}
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    named = {option for text in texts for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)}
    assert len(named) > 40
    assert named - known == set()


def test_make_docs_refuses_a_broken_link(tmp_path):
    (command,) = re.findall(r"bin/mkdocs (build.*)", (ROOT / "Makefile").read_text())
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("[nowhere](nowhere.md)\n")
    (tmp_path / "mkdocs.yml").write_text("site_name: test\nstrict: true\n")
    arguments = [sys.executable, "-m", "mkdocs", *command.split(), "-f", tmp_path / "mkdocs.yml"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 1 and "nowhere.md" in done.stderr


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("[CRS]*.md")], ids=lambda page: page.stem)
def test_links_of_a_page_lead_to_files(page):
    links = [a or b for a, b in _LINK.findall(page.read_text(encoding="utf-8"))]
    assert [link for link in links if not leads_somewhere(link, page.parent)] == []


def leads_somewhere(link: str, folder: Path) -> bool:
    """Whether a link is one of this project that exists, or one of others."""
    place = link.partition("#")[0]
    if place.startswith(SITE):
        name = place.removeprefix(SITE).strip("/")
        return not name or name.startswith("reference/") or (ROOT / "docs" / f"{name}.md").exists()
    if found := re.match(
        rf"{REPOSITORY}(?:blob|tree)/main/(.+)|{REPOSITORY.replace('github', 'raw.githubusercontent')}main/(.+)", place
    ):
        return (ROOT / (found[1] or found[2])).exists()
    if place.startswith("reference/"):  # made when the site is built, which refuses a broken link
        return True
    return "://" in place or place.startswith("mailto:") or not place or (folder / place).exists()


@pytest.mark.parametrize("package", ["wagle_trl", "wagle_kernels"])
def test_every_public_name_has_a_docstring(package):
    module = importlib.import_module(package)
    plain = (
        str,
        int,
        float,
        tuple,
        dict,
    )  # a constant has its docstring in the source, which the strict site asks for
    names = [name for name in module.__all__ if not isinstance(getattr(module, name), plain)]
    texts = {name: (getattr(module, name).__doc__ or "").strip() for name in names}
    assert [name for name, text in texts.items() if not text or text.startswith(f"{name}(")] == []  # of a dataclass


def test_every_command_is_in_a_page():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [command for command in COMMANDS if f"wagle {command}" not in text] == []
