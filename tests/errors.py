"""How the tests assert an error: by its code and by the names it quotes, never by its wording."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from brickyard.base._codes import CODES
from brickyard.base._errors import BrickyardError

LONGEST = 1000  # characters: a longer message shows a value, rather than names it


def judge(error: BaseException, code: str, *quoted: str) -> None:
    """The error is Brickyard's, has this listed code, quotes the names, and is one line of readable length."""
    text = str(error)
    assert isinstance(error, BrickyardError), f"{type(error).__name__}: {text}"
    assert error.code == code, f"{error.code}: {text}"
    assert code in CODES
    for name in quoted:
        assert name in text, f"{name!r} is not in {text!r}"
    assert text.strip() == text != "", repr(text)
    assert len(text.splitlines()) == 1, repr(text)
    assert len(text) <= LONGEST, text
    assert text.encode(), "UTF-8 cannot hold it"


@contextlib.contextmanager
def refused(code: str, *quoted: str) -> Iterator[pytest.ExceptionInfo[BrickyardError]]:
    """The block must end in an error of this code that quotes these names: with refused("data-shape", "(3, 8)"): ..."""
    with pytest.raises(BrickyardError) as caught:
        yield caught
    judge(caught.value, code, *quoted)
