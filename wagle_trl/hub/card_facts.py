"""The facts of a card, from the files of a run. Text from these files is escaped: it is shown, never interpreted."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..attribution.report import mask_report
from ..attribution.scores import SCORES
from ..comparison.runs import Run, attack_label, words
from ..comparison.tables import Column, markdown_table, metric_columns
from ..data.tofu import TOFU_FORGET_ROWS
from ..deltas.delta import SparseDelta
from ..files.hub_file import public_base
from ..files.reading import parse_json
from ..files.run_folder import DELTA_FILE, PLOT_FILE, REPORT_FILE
from ..files.schemas import Versions
from ..papers import Paper
from ..text import code, escaped, one_line, percent
from .citations import SCORE_PAPERS
from .data_facts import DataFacts

_DEFAULT_SCOPE = "all trainable weights but embeddings and LM head"


@dataclass(frozen=True)
class Facts:
    """
    Facts for the template and the metadata of a card. Unknown facts are `None` or empty.

    Args:
        run ([`~comparison.runs.Run`]): The run.
        kind (`str`): `"model"`, `"adapter"`, `"mask"` or `"delta"`.
        name (`str`): Name of the model.
        repo_id (`str`, *optional*): Repository of the card.
        base_model (`str`, *optional*): The base model on the Hub, if the run loaded it from a folder.
        before ([`~comparison.runs.Run`], *optional*): Evaluation of the base model.
        hashed (`bool`): Whether data sets are named by their digests only.
    """

    run: Run
    kind: str
    name: str
    repo_id: str | None
    base_model: str | None
    before: Run | None
    hashed: bool

    @property
    def title(self) -> str:
        return escaped(self.name)

    @property
    def place(self) -> str:
        """Argument of `from_pretrained` that loads the repository."""
        return self.repo_id or "path/to/this/folder"

    # Base model

    @property
    def base_name(self) -> str | None:
        """Argument of `from_pretrained` that loads the base model: a name or a path."""
        info = self.mask["info"] if self.mask else {}
        sources = (self.run.training, info, {} if self.run.evaluates_other_weights else self.run.evaluation)
        return self.base_model or next((name for source in sources if (name := source.get("base_model"))), None)

    @property
    def base_id(self) -> str | None:
        """Name of the base model on the Hub."""
        info, training, name = self.mask["info"] if self.mask else {}, self.run.training, self.base_name or ""
        is_local = None if info.get("base_model") == name else os.path.isdir(name)
        if training.get("base_model") == name:
            is_local = training.get("base_is_local")
        return public_base(name, info.get("base_revision"), self.base_model, is_local)[0] or None

    @property
    def base_revision(self) -> str | None:
        info = self.mask["info"] if self.mask else {}
        revision = self.run.training.get("base_revision") or info.get(
            "base_revision", "None"
        )  # a mask stores `None` as text
        is_known = self.base_id and not self.base_model and revision != "None"
        return revision if is_known and re.fullmatch(r"\w[\w./-]*", str(revision), re.ASCII) else None

    @property
    def base(self) -> str:
        """The base model as a phrase."""
        if self.base_id:
            return f"[{self.base_id}](https://huggingface.co/{self.base_id})"
        return "a local model" if self.base_name else "a model of unknown origin"

    @cached_property
    def data(self) -> DataFacts:
        """Facts about the sets of rows."""
        training = self.run.training
        return DataFacts(training.get("data", {}), training.get("answer_tokens", {}), self.hashed)

    # Method

    @property
    def objective(self) -> str | None:
        return self.run.training.get("objective")

    @property
    def is_trained(self) -> bool:
        """Whether the repository holds weights that an objective trained."""
        return self.kind != "mask" and self.objective not in (None, "mask")

    @property
    def unlearns(self) -> bool:
        """Whether the run had rows to forget, rather than rows to learn."""
        return "forget" in self.data.sets and "train" not in self.data.sets

    @property
    def method(self) -> str:
        return "SFT" if self.objective == "Masked SFT" and not self.mask else escaped(self.objective)

    @property
    def retains(self) -> bool:
        """Whether the retain rows had a weight in the loss."""
        return self.run.training.get("options", {}).get("retain_weight") != 0

    @property
    def objective_paper(self) -> Paper | None:
        paper = self.run.training.get("paper")
        return Paper(**paper) if paper and self.is_trained else None

    @property
    def score_paper(self) -> Paper | None:
        return SCORE_PAPERS.get(self.score or "")

    @property
    def papers(self) -> list[Paper]:
        return [paper for paper in (self.objective_paper, self.score_paper) if paper]

    @property
    def options(self) -> str:
        """Table of hyperparameters: the limit that counted, steps or epochs, and the number of steps taken."""
        given: dict[str, Any] = dict(self.run.training.get("options", {})) if self.is_trained else {}
        given = {
            name: value for name, value in given.items() if not name.startswith("mask_")
        }  # in a section of its own
        if given.get("refusals"):  # a path
            given["refusals"] = None if self.hashed else os.path.basename(str(given["refusals"]))
        given.pop("num_train_epochs" if (given.get("max_steps") or 0) > 0 else "max_steps", None)
        if self.is_trained:
            given["optimizer steps taken"] = self.run.history.steps
            given["step of these weights"] = self.run.numbers().get("saved_step")
        known = [[escaped(words(name)), escaped(value)] for name, value in given.items() if value is not None]
        return markdown_table([["option", "value"], *known], [False, True]) if known else ""

    # Mask

    @cached_property
    def mask(self) -> Mapping[str, Any] | None:
        """Report of the mask. A mask beside the report of a run without one was left by an earlier run."""
        if self.kind == "delta" and (self.run.folder / DELTA_FILE).exists():
            return mask_report(SparseDelta.load(self.run.folder).mask)
        if "mask" in self.run.training:
            return self.run.training["mask"]
        return mask_report(self.run.load_mask()) if self.run.has_mask else None

    @property
    def score(self) -> str | None:
        return self.mask["info"].get("score") if self.mask else None

    @property
    def is_merged(self) -> bool:
        """Whether values and mask come from several deltas. A run may also train with such a mask."""
        return self.score == "merged" and not self.is_trained

    @property
    def selected(self) -> str:
        """Number and share of the selected weights, as a phrase."""
        assert self.mask is not None  # the template asks only where there is a mask
        share = percent(self.mask["density"])
        return f"{self.mask['num_selected']:,} of the {self.mask['numel']:,} weights in scope ({share})"

    @property
    def mask_details(self) -> dict[str, str]:
        """Options that made the mask, by their labels."""
        assert self.mask is not None  # as above
        info = self.mask["info"]
        scale = SCORES[self.score].scale if self.score in SCORES else None
        known = {"Score": None if self.score == "merged" else self.score}
        known |= {"γ": info.get("gamma") if scale == "gamma" else None}
        known |= {"ε": info.get("eps") if scale == "eps" else None}
        known |= {"Seed": info.get("seed") if self.score == "random" else None, "Merged from": info.get("merged")}
        details = {label: code(value) for label, value in known.items() if value is not None}
        if "scope" in info:
            details["Scope"] = _DEFAULT_SCOPE if info["scope"] == "null" else code(info["scope"])
        if info.get("exclude", "null") != "null":
            details["Left out of the scope"] = code(info["exclude"])
        return details

    @property
    def picture(self) -> str | None:
        """File name of the picture of the mask, if the file exists."""
        return PLOT_FILE if self.mask and (self.run.folder / PLOT_FILE).exists() else None

    @property
    def layers(self) -> str:
        """Table of the selected share per layer."""
        shares = self.mask["density_by_layer"].items() if self.mask else ()
        lines = [["other" if layer == "-" else escaped(layer), percent(share)] for layer, share in shares]
        return markdown_table([["layer", "selected"], *lines], [True, True]) if lines else ""

    # Evaluation

    @cached_property
    def measured(self) -> dict[str, dict[str, float]]:
        """Numbers by column: before, after, and under each attack. Empty for a mask, which answers no question."""
        if self.kind == "mask" or not self.run.evaluation or self.run.evaluates_other_weights:
            return {}
        columns = {"before": self.before.measured()} if self.before else {}
        columns["after"] = self.run.measured()
        columns |= {one_line(words(attack_label(a, c))): self.run.measured(a) for a, c in self.run.attacks.items()}
        return {name: {k: v for k, v in numbers.items() if math.isfinite(v)} for name, numbers in columns.items()}

    @property
    def tofu(self) -> str | None:
        """Split of TOFU that was evaluated, unless data sets are hashed."""
        options = self.run.evaluation.get("options", {})
        split = options.get("tofu_split", "forget10" if "tofu_dir" in options else None)
        return split if split in TOFU_FORGET_ROWS and not self.hashed else None

    @property
    def metrics(self) -> list[Column]:
        return metric_columns(dict.fromkeys(key for numbers in self.measured.values() for key in numbers))

    @property
    def evaluation(self) -> str:
        """Table of the evaluation, one line per metric."""
        if not self.measured:
            return ""
        columns = self.measured.values()
        lines = [
            [
                escaped(m.heading[:1].upper() + m.heading[1:]),
                *(m.text(n[m.key]) if m.key in n else "" for n in columns),
            ]
            for m in self.metrics
        ]
        return markdown_table([["", *map(escaped, self.measured)], *lines], [False, *(True for _ in self.measured)])

    @property
    def trajectory(self) -> str:
        """Table of the answer probabilities of these weights, and of those before training."""
        history = self.run.history
        if not self.is_trained or not history.saved or not history.saved_step:
            return ""
        columns = ({"step 0": history.before} if history.before else {}) | {
            f"step {history.saved_step}": history.saved
        }
        lines = [
            [escaped(words(name)), *(f"{c[name]:.3f}" if name in c else "" for c in columns.values())]
            for name in history.saved
        ]
        return markdown_table([["rows", *columns], *lines], [False, *(True for _ in columns)])

    @property
    def remarks(self) -> list[str]:
        """Sentences on which weights the card is of."""
        return self.run.remarks if self.is_trained else []

    @property
    def versions(self) -> str:
        """Table of library versions."""
        of_mask = self.mask["info"].get("versions", "{}") if self.mask else "{}"
        recorded = self.run.training.get("versions") or parse_json(of_mask, Versions, self.run.folder / REPORT_FILE)
        lines = [[escaped(name), escaped(version)] for name, version in recorded.items()]
        return markdown_table([["library", "version"], *lines], [False, False]) if lines else ""
