"""What GitHub reads: workflows, issue forms, citation; and the steps of a release."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from wagle_trl import NPOTrainer
from wagle_trl.hub.citations import SCORE_PAPERS

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = "https://github.com/wagle-trl/wagle-trl"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read_yaml(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


WORKFLOWS = {path.stem: read_yaml(path) for path in (ROOT / ".github" / "workflows").iterdir()}
JOBS = {f"{name}.{key}": job for name, workflow in WORKFLOWS.items() for key, job in workflow["jobs"].items()}
STEPS = [step for job in JOBS.values() for step in job.get("steps", [])]
COMMANDS = [line for step in STEPS for line in step.get("run", "").splitlines()]
TEMPLATES = ROOT / ".github" / "ISSUE_TEMPLATE"
FORMS = {path.stem: read_yaml(path) for path in TEMPLATES.iterdir() if path.name != "config.yml"}
CITATION = read_yaml(ROOT / "CITATION.cff")


def triggers(workflow):
    return workflow[True]  # YAML 1.1 reads `on` as a boolean


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_has_few_rights_runs_once_at_a_time_and_asks_the_hub_for_nothing(name):
    workflow = WORKFLOWS[name]
    assert set(workflow) == {"name", True, "permissions", "concurrency", "env", "jobs"}
    assert workflow["name"] == name
    assert workflow["permissions"] in ({}, {"contents": "read"})
    assert set(workflow["concurrency"]) == {"group", "cancel-in-progress"}
    assert workflow["env"].items() >= {"CI": "true", "HF_HUB_OFFLINE": "1"}.items()


def test_only_the_upload_may_write_and_no_workflow_reads_a_secret():
    rights = {name: job["permissions"] for name, job in JOBS.items() if "permissions" in job}
    assert {name for name, right in rights.items() if "write" in right.values()} == {"docs.deploy", "publish.publish"}
    assert rights["publish.publish"] == {"id-token": "write"}
    assert rights["docs.deploy"] == {"id-token": "write", "pages": "write"}
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / ".github" / "workflows").iterdir()]
    assert not [text for text in texts if "secrets." in text or "pull_request_target" in text]


@pytest.mark.parametrize("name", JOBS)
def test_a_job_ends_by_itself_or_is_another_workflow(name):
    job = JOBS[name]
    if "uses" in job:
        called = WORKFLOWS[Path(job["uses"]).stem]
        assert "workflow_call" in triggers(called)
        # In a called workflow, `github.workflow` is the caller: a group by that name would wait for itself
        assert "github.workflow" not in called["concurrency"]["group"]
        return
    assert job["timeout-minutes"] <= 180
    assert job["runs-on"] == "ubuntu-latest"


def test_actions_are_pinned_to_a_major_version():
    actions = [step["uses"] for step in STEPS if "uses" in step]
    assert actions
    assert [action for action in actions if not re.fullmatch(r"[\w.-]+/[\w.-]+@(release/)?v\d+", action)] == []


def test_no_checkout_leaves_its_token_behind():
    checkouts = [step for step in STEPS if step.get("uses", "").startswith("actions/checkout@")]
    assert checkouts
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_workflows_call_targets_and_variables_that_the_makefile_has():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    variables = set(re.findall(r"^(\w+) *\?=", makefile, re.MULTILINE))
    calls = [re.sub(r"\$\{\{.*?\}\}", "", line) for line in COMMANDS if line.startswith("make ")]
    assert {call.split()[1] for call in calls} == {"docs", "install", "lint", "test"} & targets
    used = {name for call in calls for name in re.findall(r"(\w+)=", call)}
    assert used | {"WITH"} <= variables
    assert "WITH" in WORKFLOWS["weekly"]["jobs"]["main-branches"]["env"]


def test_every_supported_python_is_tested_and_declared():
    matrix = WORKFLOWS["tests"]["jobs"]["test"]["strategy"]["matrix"]
    prefix = "Programming Language :: Python :: 3."
    declared = [name.removeprefix(prefix) for name in PROJECT["classifiers"] if name.startswith(prefix)]
    assert matrix["python"] == [f"3.{minor}" for minor in declared]
    assert PROJECT["requires-python"] == f">={matrix['python'][0]}"


def test_the_matrix_has_the_lowest_versions_the_newest_and_those_of_development():
    matrix = WORKFLOWS["tests"]["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["constraints"] == ["constraints-lowest.txt", ""]
    assert [extra["constraints"] for extra in matrix["include"]] == ["constraints.txt"]
    assert (ROOT / "constraints-lowest.txt").is_file()
    assert (ROOT / "constraints.txt").is_file()


def test_the_weekly_run_takes_both_libraries_from_their_main_branches():
    assert triggers(WORKFLOWS["weekly"])["schedule"]
    requirements = WORKFLOWS["weekly"]["jobs"]["main-branches"]["env"]["WITH"].split()
    assert requirements == [f"{name}@git+https://github.com/huggingface/{name}" for name in ("trl", "transformers")]


def test_only_a_tag_publishes_after_the_tests_and_the_check_of_the_tag():
    workflow = WORKFLOWS["publish"]
    assert triggers(workflow) == {"push": {"tags": ["v*"]}}
    assert workflow["jobs"]["publish"]["needs"] == ["tests", "build"]
    assert workflow["jobs"]["publish"]["environment"]["name"] == "pypi"
    commands = [step.get("run") for step in workflow["jobs"]["build"]["steps"]]
    assert commands.index('python .ci/check_tag.py "$GITHUB_REF_NAME"') < commands.index("python -m build")


# https://docs.github.com/communities/using-templates-to-encourage-useful-issues-and-pull-requests/syntax-for-issue-forms
FORM_KEYS = {"name", "description", "body", "title", "labels", "assignees", "projects", "type"}
ATTRIBUTES = {  # of each type of element: required, optional
    "markdown": ({"value"}, set()),
    "textarea": ({"label"}, {"description", "placeholder", "value", "render"}),
    "input": ({"label"}, {"description", "placeholder", "value"}),
    "dropdown": ({"label", "options"}, {"description", "multiple", "default"}),
    "checkboxes": ({"label", "options"}, {"description"}),
}


def test_there_is_a_form_for_a_bug_a_feature_and_an_objective():
    assert set(FORMS) == {"bug", "feature", "objective"}
    config = read_yaml(TEMPLATES / "config.yml")
    assert config["blank_issues_enabled"] is False
    assert [set(link) for link in config["contact_links"]] == [{"name", "url", "about"}]


@pytest.mark.parametrize("name", FORMS)
def test_a_form_has_the_keys_that_github_documents(name):
    form = FORMS[name]
    assert {"name", "description", "body"} <= set(form) <= FORM_KEYS
    for element in form["body"]:
        required, optional = ATTRIBUTES[element["type"]]
        assert set(element) <= {"type", "id", "attributes", "validations"}
        assert required <= set(element["attributes"]) <= required | optional
        assert set(element.get("validations", {})) <= {"required"}
    ids = [element["id"] for element in form["body"] if element["type"] != "markdown"]
    assert all(re.fullmatch(r"[\w-]+", name) for name in ids)
    labels = [element["attributes"]["label"] for element in form["body"] if element["type"] != "markdown"]
    assert len(ids) == len(set(ids)) == len(set(labels))


@pytest.mark.parametrize("name", FORMS)
def test_the_options_of_a_form_are_different_strings(name):
    for element in FORMS[name]["body"]:
        options = element["attributes"].get("options", [])
        if element["type"] == "checkboxes":
            assert all({"label"} <= set(option) <= {"label", "required"} for option in options)
            options = [option["label"] for option in options]
        assert all(isinstance(option, str) and option.lower() != "none" for option in options)
        assert len(options) == len(set(options))


def test_the_citation_has_the_keys_of_cff_and_the_facts_of_the_project():
    assert CITATION.keys() >= {"cff-version", "message", "title", "authors"}
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["title"] == PROJECT["name"]
    assert CITATION["version"] == PROJECT["version"]
    assert CITATION["license"] == PROJECT["license"]
    assert CITATION["authors"] == PROJECT["authors"]
    assert CITATION["repository-code"] == PROJECT["urls"]["Repository"] == ADDRESS


@pytest.mark.parametrize("paper", [SCORE_PAPERS["wagle"], NPOTrainer._paper], ids=["wagle", "npo"])
def test_the_citation_refers_to_the_paper_of(paper):
    references = {reference["url"]: reference for reference in CITATION["references"]}
    reference = references[f"https://arxiv.org/abs/{paper.arxiv}"]
    assert reference["title"] == re.sub("[{}]", "", paper.title)
    assert reference["year"] == 2000 + int(paper.arxiv[:2])
    names = [f"{author['family-names']}, {author['given-names']}" for author in reference["authors"]]
    assert " and ".join(names) == paper.authors


def test_every_link_to_the_repository_goes_to_one_address():
    files = [*ROOT.glob("*.md"), ROOT / "CITATION.cff", ROOT / "pyproject.toml"]
    files += [path for path in (ROOT / ".github").rglob("*") if path.is_file()]
    links = [link for file in files for link in re.findall(r"https://github.com/wagle[^\s\"')>]*", file.read_text())]
    assert links
    assert [link for link in links if link != ADDRESS and not link.startswith((f"{ADDRESS}/", f"{ADDRESS}#"))] == []


@pytest.mark.parametrize("name", ["SECURITY.md", "CODE_OF_CONDUCT.md", ".github/ISSUE_TEMPLATE/config.yml"])
def test_private_reports_go_through_the_form_of(name):
    assert f"{ADDRESS}/security/advisories/new" in (ROOT / name).read_text(encoding="utf-8")


def test_the_code_of_conduct_is_that_of_the_contributor_covenant():
    text = (ROOT / "CODE_OF_CONDUCT.md").read_text(encoding="utf-8")
    assert "https://www.contributor-covenant.org/version/2/1/code_of_conduct/" in text


@pytest.fixture
def release(tmp_path):
    """A folder in which version 1.2.3 is ready to be tagged."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "check_tag.py", tmp_path / ".ci")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "wagle-trl"\nversion = "1.2.3"\n')
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.3\ndate-released: 2030-01-02\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [1.2.3] - 2030-01-02\n\n## [1.2.2] - 2029-01-02\n")
    return tmp_path


def check(folder, tag):
    command = [sys.executable, str(folder / ".ci" / "check_tag.py"), tag]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_tag_that_names_the_version_may_be_published(release):
    done = check(release, "v1.2.3")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("pyproject.toml", "1.2.3", "1.2.4", "expected the tag v1.2.4"),
        ("CITATION.cff", "version: 1.2.3", "version: 1.2.2", "The version in CITATION.cff is 1.2.2"),
        ("CITATION.cff", "date-released: 2030-01-02", "", "The date-released in CITATION.cff is none"),
        ("CHANGELOG.md", "[1.2.3] - 2030-01-02", "[1.2.3] - Unreleased", "expected '## [1.2.3] - 2030-01-02'"),
        ("CHANGELOG.md", "[1.2.3]", "[1.2.4]", "The newest heading in CHANGELOG.md is '## [1.2.4]"),
    ],
    ids=["another version", "another version cited", "no date", "unreleased", "another heading"],
)
def test_a_tag_is_refused_where_a_file_says_something_else(release, file, old, new, said):
    path = release / file
    path.write_text(path.read_text().replace(old, new))
    done = check(release, "v1.2.3")
    assert done.returncode == 1
    assert said in done.stderr


@pytest.mark.parametrize("tag", ["1.2.3", "v1.2", "v1.2.3rc1"])
def test_a_tag_of_another_name_is_refused(release, tag):
    assert "expected the tag v1.2.3" in check(release, tag).stderr


def test_the_commands_of_the_release_notes_name_a_version_that_may_be_tagged(release):
    """On the repository's own files, whatever version they have now."""
    for name in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md"):
        shutil.copy(ROOT / name, release)
    text = (ROOT / "RELEASE.md").read_text(encoding="utf-8")
    naming, *_, opening = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    naming = re.sub(r"^VERSION=.*", "VERSION=12.3.4", naming).replace("python3", sys.executable)
    if "Unreleased" not in (release / "CHANGELOG.md").read_text():
        opening_first = opening.splitlines()[0]
        subprocess.run(["bash", "-euc", opening_first], cwd=release, check=True, timeout=60)
    done = subprocess.run(["bash", "-euc", naming], cwd=release, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    subprocess.run(["bash", "-euc", opening.splitlines()[0]], cwd=release, check=True, timeout=60)
    headings = [line for line in (release / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")]
    assert headings[0] == "## [Unreleased]"
    assert headings[1].startswith("## [12.3.4] - ")
    assert yaml.safe_load((release / "CITATION.cff").read_text())["version"] == "12.3.4"
