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
        # In the path, without a name, within another address, escaped where it should not be.
        ("https://h/word567890123456/me/", "https://h/***/me/"),
        ("'https://h/a/aB3dE6gword1H9jK2m'", "'https://h/a/***'"),
        ("https://h/simple?word12345", "https://h/simple?***"),
        ("https://h/?x&y=word%20 https://h/?token%3Dword z", "https://h/?x&y=*** https://h/?*** z"),
        ("https://h/?auth[token]=word&amp;key='word'", "https://h/?auth[token]=***&amp;key=***"),
        ("https://h/a;token=word/b#access_token=word", "https://h/a;token=***/b#access_token=***"),
        ("https://me:word%40h/x", "https://***%40h/x"),
        ("https://me%3Aword%40h/x", "https://***%40h/x"),
        ("https%3A%2F%2Fme%3Aword%40h/x", "https%3A%2F%2F***%40h/x"),
        ("https://h/get/https%3a%2f%2fme%3aword%40h", "https://h/get/https%3a%2f%2f***%40h"),
        # Without an address.
        ("header Bearer word0word.w-w", "header Bearer ***"),
        ("authorization: bearer word0word", "authorization: bearer ***"),
        ("> Authorization: token word0word", "> Authorization: token ***"),
        ("'PRIVATE-TOKEN': 'word0word'", "'PRIVATE-TOKEN': '***'"),
        ("X-JFrog-Art-Api: word0word", "X-JFrog-Art-Api: ***"),
        ("ghp_word56789012345678901234 and glpat-word5678901234567890", "ghp_*** and glpat-***"),
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
        "https://files.h/packages/9f/6b/"
        + "0123456789" * 6
        + "/nvidia_cudnn_cu12-8.9.2.26-py3-none-manylinux1_x86_64.whl",
        f"https://h/o/r/archive/{'01ab' * 10}/r.zip git+https://h/r@{'01ab' * 10}",
        "https://h/whl/cu121/stable-cuda-12-1-linux-x86-64/Qwen2-VL-7B-Instruct-GPTQ-Int4/resolve/main",
        "torch ; python_version=='3' and a;python_version>='3' # use token=…",
        "hf_transfer_is_installed pypi-attestations-long-name Basic authorization is not enough",
    ],
)
def test_what_is_no_login_stays(words: str) -> None:
    assert text.hide_logins(words) == words
