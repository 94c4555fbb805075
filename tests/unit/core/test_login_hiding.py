"""Logins in addresses never stand in messages, whatever the form of the address."""

import pytest

from train_classifier.core import errors, text
from train_classifier.core.errors import BadInput, NoEnvironment


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("https://me:word@h/x.git@v1", "https://***@h/x.git@v1"),
        ("https://word@h/x", "https://***@h/x"),
        ("git+ssh://me:word@h/x", "git+ssh://***@h/x"),
        ("HTTPS://me%3Aword%40@h", "HTTPS://***@h"),
        ("https://me:wo@word@[::1]:80/x", "https://***@[::1]:80/x"),
        ("https://me:a/word@h/x y", "https://***@h/x y"),
        ("https://me:a#word@h/x", "https://***@h/x"),
        ("--index-url me:word@h/simple", "--index-url ***@h/simple"),
        ("'//me:word@h/'", "'//***@h/'"),
        ("https:/me:word@h/", "https:/***@h/"),
        ("git+me:word@h:x/y", "***@h:x/y"),
        ("https://h/a.whl?sig=word&x-token=word#egg=a", "https://h/a.whl?sig=***&x-token=***#egg=a"),
        ("r.txt?private_token=word'", "r.txt?private_token=***'"),
        ("a=https://me:word@h,https://word@i", "a=https://***@h,https://***@i"),
    ],
)
def test_login_is_hidden_in_every_error(words: str, shown: str) -> None:
    assert text.hide_logins(words) == shown
    fields = NoEnvironment(words, words, words).to_dict()
    assert (fields["reason"], fields["hint"], fields["detail"]) == (shown,) * 3
    assert BadInput(words, hint=words).to_dict()["problems"] == [shown]
    assert "word" not in str(errors.from_dict({"code": 9, "reason": words}))
    assert "word" not in text.quoted(words)


@pytest.mark.parametrize(
    "words",
    [
        "git+ssh://git@h:22/r.git@v1",
        "git@h.org:me/r.git@v1",
        "python:3.12@sha256:0123",
        "h:5000/a/b:1@sha256:0123",
        "https://h:8080/x@v1",
        "https://[::1]:80/x@v1",
        "https://${USER}:${TOKEN}@h/?key=${KEY}",
        "name a commit: git+https://…@COMMIT",
        "a @ git+https://h/r.git@main#egg=a&subdirectory=b",
        "a ; python_version == '3' and x@y.org: z@z",
        "https://h/a?b",
    ],
)
def test_what_is_no_login_stays(words: str) -> None:
    assert text.hide_logins(words) == words
