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
from ..data.lengths import AnswerTokens
from ..data.tofu import TOFU_FORGET_ROWS
from ..deltas.delta import SparseDelta
from ..files.hub_file import public_base
from ..files.reading import parse_json
from ..files.run_folder import DELTA_FILE, PLOT_FILE, REPORT_FILE
from ..files.schemas import Versions
from ..papers import Paper
from ..text import HUB_ID, code, escaped, one_line, percent
from .citations import SCORE_PAPERS

_ROW_LABELS = {"forget": "Rows to forget", "retain": "Rows to keep", "train": "Rows trained on"}
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
        sources = (self.run.training, info, {} if self.evaluates_other_weights else self.run.evaluation)
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

    # Data

    @cached_property
    def data(self) -> Mapping[str, Mapping[str, Any]]:
        """Descriptions of the sets of rows, see [`~data.provenance.describe_rows`]."""
        return self.run.training.get("data", {})

    @property
    def rows(self) -> dict[str, str]:
        """Every row set in a line, by its label."""
        return {
            _ROW_LABELS.get(name, escaped(name)): self._describe(rows) + self._cut(name)
            for name, rows in self.data.items()
        }

    def _cut(self, name: str) -> str:
        """What of the answers took no part, because the rows were too long."""
        counted = self.run.training.get("answer_tokens", {}).get(name)
        if counted is None or not counted["rows_cut"]:
            return ""
        return f"; {AnswerTokens(**counted)}"

    def _describe(self, rows: Mapping[str, Any]) -> str:
        parts = [f"{rows['rows']:,} row{'s' * (rows['rows'] != 1)}"]
        if rows.get("source") and not self.hashed:
            parts[0] += f" of {self._source(rows)}"
            parts += [f"{key} {code(rows[key])}" for key in ("config", "split", "revision") if rows.get(key)]
        if self._has_plain_digest(rows):
            parts.append(f"SHA-256 {code(rows['sha256'])}")
        if rows.get("hmac_sha256"):
            parts.append(f"HMAC-SHA-256 {code(rows['hmac_sha256'])}")
        return ", ".join(parts)

    def _has_plain_digest(self, rows: Mapping[str, Any]) -> bool:
        """Whether the rows are public. A plain digest of others confirms guesses, and of hashed ones reveals the name."""
        return bool(rows.get("sha256") and rows.get("revision") and not self.hashed)

    def _source(self, rows: Mapping[str, Any]) -> str:
        source = rows["source"]
        is_on_hub = rows.get("revision") and HUB_ID.fullmatch(source)
        return f"[{source}](https://huggingface.co/datasets/{source})" if is_on_hub else code(os.path.basename(source))

    @property
    def datasets(self) -> list[str]:
        """Names of the data sets on the Hub, unless they are hashed."""
        sources = [rows.get("source") or "" for rows in self.data.values() if rows.get("revision") and not self.hashed]
        return [source for source in dict.fromkeys(sources) if HUB_ID.fullmatch(source)]

    @property
    def has_digests(self) -> bool:
        return self.has_keyed_digests or any(map(self._has_plain_digest, self.data.values()))

    @property
    def has_keyed_digests(self) -> bool:
        return any(rows.get("hmac_sha256") for rows in self.data.values())

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
        return "forget" in self.data and "train" not in self.data

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
        given.pop("num_train_epochs" if (given.get("max_steps") or 0) > 0 else "max_steps", None)
        if self.is_trained:  # the last log may be of an earlier step
            given["optimizer steps taken"] = self.run.training.get("steps", self.run.numbers().get("steps"))
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

    @property
    def evaluates_other_weights(self) -> bool:
        """Whether the evaluation is of other weights than the report, as when an earlier run left it."""
        prints = [content.get("fingerprint") for content in (self.run.training, self.run.evaluation)]
        return None not in prints and prints[0] != prints[1]

    @cached_property
    def measured(self) -> dict[str, dict[str, float]]:
        """Numbers by column: before, after, and under each attack. Empty for a mask, which answers no question."""
        if self.kind == "mask" or not self.run.evaluation or self.evaluates_other_weights:
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
        """Table of the answer probabilities at the start and the end of training."""
        columns = self.run.trajectory if self.is_trained else {"step": []}
        steps = columns["step"]
        if len(steps) < 2:
            return ""
        lines = [[escaped(words(k)), f"{v[0]:.3f}", f"{v[-1]:.3f}"] for k, v in columns.items() if k != "step"]
        return markdown_table([["rows", f"step {steps[0]}", f"step {steps[-1]}"], *lines], [False, True, True])

    @property
    def versions(self) -> str:
        """Table of library versions."""
        of_mask = self.mask["info"].get("versions", "{}") if self.mask else "{}"
        recorded = self.run.training.get("versions") or parse_json(of_mask, Versions, self.run.folder / REPORT_FILE)
        lines = [[escaped(name), escaped(version)] for name, version in recorded.items()]
        return markdown_table([["library", "version"], *lines], [False, False]) if lines else ""
