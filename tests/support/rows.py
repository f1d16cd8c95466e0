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


# The same question and answer in every shape
QUESTION, ANSWER = {"role": "user", "content": "Where is Ada?"}, {"role": "assistant", "content": "Ada lives in Oslo."}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find_town",
            "description": "Find a town.",
            "parameters": {"type": "object", "properties": {"name": {"type": "string", "description": "Whose."}}},
        },
    }
]
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "call00001", "type": "function", "function": {"name": "find_town", "arguments": {"name": "Ada"}}}
    ],
}
RESULT = {"role": "tool", "name": "find_town", "tool_call_id": "call00001", "content": "Oslo"}
SHAPES = {
    "text": {"text": ANSWER["content"]},
    "prompt/completion": {"prompt": "Where is Ada?", "completion": " Ada lives in Oslo."},
    "question/answer": {"question": QUESTION["content"], "answer": ANSWER["content"]},
    "messages": {"messages": [QUESTION, ANSWER, QUESTION, ANSWER]},
    "conversational prompt/completion": {"prompt": [QUESTION], "completion": [ANSWER]},
    "conversations": {
        "conversations": [{"from": "human", "value": "Where is Ada?"}, {"from": "gpt", "value": ANSWER["content"]}]
    },
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Where is "}, {"type": "text", "text": "Ada?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": ANSWER["content"]}]},
        ]
    },
    "tools": {"messages": [QUESTION, ANSWER], "tools": TOOLS},
    "thinking": {"messages": [QUESTION, ANSWER], "chat_template_kwargs": {"enable_thinking": True}},
    "no thinking": {"messages": [QUESTION, ANSWER], "chat_template_kwargs": {"enable_thinking": False}},
    # Some templates know none of these, and then say so
    "system": {"messages": [{"role": "system", "content": "Be brief."}, QUESTION, ANSWER]},
    "tool call": {"messages": [QUESTION, CALL], "tools": TOOLS},
    "tool result": {"messages": [QUESTION, CALL, RESULT, ANSWER], "tools": TOOLS},
    "reasoning": {"messages": [QUESTION, ANSWER | {"reasoning_content": "Let me see."}]},
    "reasoning in the text": {
        "messages": [QUESTION, ANSWER | {"content": "<think>\nLet me see.\n</think>\n\nAda lives in Oslo."}]
    },
}


def write_lines(path, rows) -> Path:
    """Write rows as JSON lines and return the path."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
