"""A row of every format, and a file of rows."""

import json
from pathlib import Path

USER, ASSISTANT = {"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Oslo."}
ROWS = {
    "prompt/completion": {"prompt": "Where?", "completion": " Oslo."},
    "question/answer": {"question": "Where?", "answer": "Oslo."},
    "messages": {"messages": [USER, ASSISTANT]},
    "text": {"text": "Ada lives in Oslo."},
    "input_ids/labels": {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
    "input_ids": {"input_ids": [5, 6, 7]},
    "conversational prompt/completion": {"prompt": [USER], "completion": [ASSISTANT]},
}


def write_lines(path, rows) -> Path:
    """Write rows as JSON lines and return the path."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
