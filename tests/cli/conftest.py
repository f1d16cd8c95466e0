import json

import pytest

from wagle_trl.evaluation import tofu

from ..support.writers import make_inputs


@pytest.fixture
def write_jsonl(tmp_path):
    """Writes rows as JSON lines and returns the path."""

    def write(name, rows):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def saved_model(tmp_path, tiny_model, tiny_tokenizer):
    """Folder of a tiny model with its tokenizer."""
    folder = tmp_path / "base"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def data(forget_rows, retain_rows, write_jsonl):
    """Options that name a forget and a retain file."""
    forget, retain = write_jsonl("forget", forget_rows.to_list()), write_jsonl("retain", retain_rows.to_list())
    return ["--forget_dataset", forget, "--retain_dataset", retain]


@pytest.fixture
def quick(tmp_path):
    """Options of the shortest training, into `tmp_path/out`."""
    return [
        *("--output_dir", str(tmp_path / "out")),
        *("--max_steps", "2", "--per_device_train_batch_size", "2", "--learning_rate", "1e-3"),
        *("--gradient_checkpointing", "false", "--save_strategy", "no", "--report_to", "none", "--logging_steps", "1"),
    ]


@pytest.fixture
def interrupt_at(monkeypatch):
    """`calls = interrupt_at(n)`: the n-th batch to be evaluated is interrupted; `calls` lists what was asked for."""
    evaluate = tofu.answer_likelihoods

    def interrupt(number):
        calls = []

        def interrupted(*args):
            calls.append(args)
            if len(calls) == number:
                raise KeyboardInterrupt
            return evaluate(*args)

        monkeypatch.setattr(tofu, "answer_likelihoods", interrupted)
        return calls

    return interrupt


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, tiny_model, tiny_tokenizer):
    """What the commands of tests/support/writers.py read, made once for all tests: none may change it."""
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder, tiny_model(), tiny_tokenizer)
    return folder
