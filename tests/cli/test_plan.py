import json
import re

import pytest
import yaml
from transformers import LlamaConfig

from wagle_trl.cli.main import main
from wagle_trl.cli.plan import _draw
from wagle_trl.memory.simulation import Simulation
from wagle_trl.planning.planner import Plan


@pytest.fixture(scope="module", autouse=True)
def equal_steps_are_simulated_once():
    """A step of 32 layers takes seconds to simulate, and the plans of these tests have most of theirs in common."""
    run, known = Simulation.run, {}

    def run_once(simulation, losses, step):
        dtypes = frozenset(tensor.dtype for tensor in simulation.weights().values())
        # Every plan has a function of its own for its objective: tests of another one than NPO have rows of another length
        key = repr(simulation.model.config), dtypes, losses.__qualname__, step
        if key not in known:
            known[key] = run(simulation, losses, step)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Simulation, "run", run_once)
        yield


@pytest.fixture(scope="module")
def llama_7b(tmp_path_factory):
    """Folder with the config of Llama-2-7b and nothing else."""
    folder = tmp_path_factory.mktemp("llama")
    LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        dtype="bfloat16",
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def options(llama_7b):
    return ["plan", "--model_name_or_path", llama_7b, "--max_length", "256", "--optim", "adamw_8bit"]


def test_a_plan_needs_the_config_alone(options, capsys):
    code = main([*options, "--mask_density", "0.05", "--gpu", "24GB", "--json"])
    content = json.loads(capsys.readouterr().out)
    assert code == 0 and content["fits"] is True and content["changes"] == {}
    assert content["training_peak_bytes"] == sum(content["training"].values()) < 24e9
    assert content["attribution_peak_bytes"] == sum(content["attribution"].values()) < 24e9
    assert content["attribution_memory"] == "sweeps" and content["attribution_sweeps"] > 1


@pytest.mark.slow
def test_the_reference_of_an_objective_is_counted(options, capsys):
    def training(*given):
        main([*options, "--max_length", "192", "--objective", "undial", "--gpu", "80GB", "--json", *given])
        return json.loads(capsys.readouterr().out)["training"]

    batch = "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2"
    states = 4 * 2 * 192 * 4096 * 2  # rows, micro-batches, tokens, width, bytes
    swapped, stored = training(*batch), training(*batch, "--reference_states", "stored")
    assert stored["reference"] == states
    assert swapped["reference"] - states == pytest.approx(2 * 0.05 * 6.48e9, rel=0.01)  # originals
    dense = training(*batch, "--mask", "none")  # in fp32
    assert dense["reference"] == 2 * states + 4 * 32000 * 4096  # a frozen head


def test_what_does_not_fit_exits_with_1_and_says_what_would(options, capsys):
    assert main([*options, "--mask_density", "0.5", "--gpu", "24GB"]) == 1
    out = capsys.readouterr().out
    assert "Does not fit 24.0 GB" in out
    assert "Cheapest change that makes it fit: --mask_density 0.125" in out


def test_auto_writes_options_that_fit(options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = tmp_path / "mine.yaml"
    given.write_text("forget_dataset: forget.jsonl\nretain_dataset: retain.jsonl\nbeta: 0.2\nmask_density: 0.5\n")
    assert main([*options, "--config", str(given), "--gpu", "24GB", "--auto"]) == 0
    assert "wagle unlearn --config wagle_plan.yaml" in capsys.readouterr().out
    written = yaml.safe_load((tmp_path / "wagle_plan.yaml").read_text())
    assert written["mask_density"] == 0.125 and written["beta"] == 0.2 and written["optim"] == "adamw_8bit"
    assert written["objective"] == "npo"
    assert written["forget_dataset"] == "forget.jsonl" and not {"gpu", "auto", "config"} & set(written)
    assert main(["plan", "--config", "wagle_plan.yaml", "--gpu", "24GB"]) == 0


def test_auto_takes_the_name_of_a_file(options, tmp_path, capsys):
    path = tmp_path / "fits.yaml"
    assert main([*options, "--gpu", "24GB", "--auto", str(path)]) == 0
    assert yaml.safe_load(path.read_text())["max_length"] == 256


def test_a_plan_is_drawn_as_png_and_pdf(options, tmp_path, capsys):
    assert main([*options, "--gpu", "24GB", "--plot", str(tmp_path / "plan.png"), "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["plot"]
    assert files == [str(tmp_path / "plan.png"), str(tmp_path / "plan.pdf")]
    for file, start in zip(files, (b"\x89PNG", b"%PDF"), strict=True):
        with open(file, "rb") as opened:
            assert opened.read(4) == start


@pytest.mark.parametrize("name", ["plan", "plan.pdf", "plan.v1"])
def test_the_picture_of_a_plan_has_both_suffixes(name, tmp_path):
    files = [file.name for file in _draw(Plan({"weights": 5}, capacity=9), tmp_path / name)]
    stem = name.removesuffix(".pdf")
    assert files == [f"{stem}.png", f"{stem}.pdf"] == sorted(file.name for file in tmp_path.iterdir())[::-1]


def test_fine_tuning_has_half_the_rows(options, capsys):
    peaks = {}
    for objective in ("npo", "sft"):
        main([*options, "--gpu", "80GiB", "--objective", objective, "--json"])
        peaks[objective] = json.loads(capsys.readouterr().out)["training"]["activations"]
    assert peaks["sft"] == pytest.approx(peaks["npo"] / 2, rel=0.01)


def test_weights_saved_in_fp32_are_planned_so_and_the_plan_says_what_bf16_saves(tmp_path, capsys):
    LlamaConfig(vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=2).save_pretrained(tmp_path)
    options = ["plan", "--model_name_or_path", str(tmp_path), "--max_length", "16", "--gpu", "24GB"]
    assert main(options) == 0
    shown = capsys.readouterr().out
    assert re.search(r"--dtype bfloat16 takes 0\.00\d*[1-9]\d* GB less", shown) and "0.00000" not in shown
    contents = []
    for dtype in ("auto", "float32", "bfloat16"):
        main([*options, "--dtype", dtype, "--json"])
        contents.append(json.loads(capsys.readouterr().out))
    own, wide, half = contents
    assert own == wide and own["bfloat16_saves_bytes"] > half["training"]["weights"]
    assert half["bfloat16_saves_bytes"] == 0


def test_without_a_mask_all_weights_have_moments(options, capsys):
    assert main([*options, "--mask", "none", "--optim", "adamw_torch", "--gpu", "80GB", "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["attribution"] is None
    assert content["training"]["moments"] == pytest.approx(2 * content["training"]["weights"], rel=1e-4)
    assert content["training"]["weights"] > 26e9  # fp32, as in TRL


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "large"], "--gpu must be a size such as '24GB' or '80GiB', got 'large'."),
        (["--gpu", "0GB"], "--gpu must be a size"),
        (["--gpu", "24GB", "--use_peft", "true"], "leave out use_peft"),
        (["--gpu", "24GB", "--optim", "adafactor"], "--optim must be one of adamw_torch"),
        (["--gpu", "24GB", "--objective", "dpo"], "There is no objective 'dpo'; did you mean idkdpo?"),
        (["--gpu", "24GB", "--mask", "nowhere"], "No mask file at nowhere"),
    ],
)
def test_bad_options_are_one_line(arguments, message, options, capsys):
    assert main([*options, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_without_a_gpu_one_must_be_named(options, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(options) == 2
    assert "for example --gpu 24GB" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_one_line(capsys):
    assert main(["plan", "--model_name_or_path", "nowhere/at-all", "--gpu", "24GB"]) == 2
    assert "Cannot load 'nowhere/at-all'" in capsys.readouterr().err
