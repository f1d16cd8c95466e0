"""
`wagle mask`: computes a mask without training. It takes the options of `wagle unlearn`, so that one YAML file serves both. The
option `mask`, which says where `wagle unlearn` takes its mask from, is ignored: the mask is always computed.
"""

from dataclasses import dataclass, field
from pathlib import Path

from ..attribution.report import mask_report, plot_mask, report_tables
from ..files.atomic import staging_folder
from ..files.manifest import Manifest
from ..files.model_files import WEIGHTS, matches_any
from ..files.run_folder import MASK_FILE, PLOT_FILE, REPORT_FILE
from ..objectives.names import OBJECTIVES
from ..trainers.run_report import write_run_report
from .objectives import ObjectiveChoice, chosen_objective, options_elsewhere
from .output import Output
from .parser import parse
from .train import build_trainer, option_types


@dataclass
class MaskPlot:
    """Option of the picture."""

    plot_pdf: bool = field(default=False, metadata={"help": "Write the picture as PDF, too."})


def run(argv: list[str], command: str) -> Output:
    objective = (
        chosen_objective(argv) or "npo"
    )  # which matters where the objective chooses the rows that attribution reads
    types = [*option_types(objective), ObjectiveChoice, MaskPlot]
    data_args, _, mask_config, training_args, model_args, _, plot = parse(types, argv, command, options_elsewhere())
    folder = Path(training_args.output_dir)
    before = Manifest.read(folder)
    if before is not None and any(matches_any(name, WEIGHTS) and name != MASK_FILE for name in before.files):
        raise ValueError(
            f"'{folder}' holds a trained model; choose another --output_dir, or the mask would be taken for its own."
        )
    training_args.report_to = []  # nothing is logged: a tracker of the shared file need not be installed
    trainer = build_trainer(OBJECTIVES[objective], data_args, training_args, model_args, mask_config=mask_config)
    mask = trainer.compute_mask()
    plots = [PLOT_FILE, str(Path(PLOT_FILE).with_suffix(".pdf"))] if plot.plot_pdf else [PLOT_FILE]
    with staging_folder(folder) as stage:
        mask.save(stage)
        for name in plots:
            plot_mask(mask, stage / name)
        write_run_report(trainer, stage, objective="mask")
        Manifest.of(stage, [MASK_FILE, *plots, REPORT_FILE]).move_into_place(stage, folder)
    report = mask_report(mask)
    return Output(report | {"output_dir": str(folder)}, report_tables(report))
