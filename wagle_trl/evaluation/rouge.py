"""ROUGE-L recall, as published and for words of every script."""

import re
import unicodedata
from functools import cache

from rouge_score.rouge_scorer import RougeScorer

# Scripts that put no spaces between words: Thai to Myanmar, Khmer, kana, Han
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


class _UnicodeWords:
    """Tokenizer for rouge-score: runs of letters, marks and digits, or single signs in scripts without spaces."""

    def tokenize(self, text: str) -> list[str]:
        kept = (
            char if unicodedata.category(char)[0] in "LMN" else " " for char in unicodedata.normalize("NFKC", text)
        )
        return _UNSPACED.sub(r" \g<0> ", "".join(kept).casefold()).split()


@cache
def _rouge_scorer(in_any_script: bool) -> RougeScorer:
    if in_any_script:
        return RougeScorer(["rougeL"], tokenizer=_UnicodeWords())
    return RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l_recall(prediction: str, answer: str, *, in_any_script: bool = False) -> float | None:
    """
    ROUGE-L recall with stemming: the longest common subsequence of words, as a share of the words in `answer`.

    Words are sequences of `a-z` and `0-9` after lower-casing, as in the published metric, which finds no words in other
    scripts.

    Args:
        prediction (`str`):
            Generated text. It may be empty.
        answer (`str`):
            Correct answer.
        in_any_script (`bool`, *optional*, defaults to `False`):
            Whether to count words of every script, without stemming. In scripts without spaces between words, such as Chinese
            and Thai, every sign is a word.

    Returns:
        `float` or `None`: Recall, from `0.0` to `1.0`; `None` if `answer` has no word.
    """
    if not answer.strip():
        raise ValueError("`answer` is empty: ROUGE recall counts its words.")
    words = _UnicodeWords().tokenize(answer) if in_any_script else re.findall("[a-z0-9]+", answer.lower())
    return float(_rouge_scorer(in_any_script).score(answer, prediction)["rougeL"].recall) if words else None
