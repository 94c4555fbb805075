"""Slack notices, with a real HTTP server: a notice never fails, hangs, or shows the webhook."""

import contextlib
import http.server
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from train_classifier.github_action.slack_message import (
    SECTION,
    Event,
    Notice,
    events,
    message,
    notify,
    webhook_url,
)

SECRET = "T0SECRET/B0SECRET/hushhushhush"
NOTICE = Notice(
    event=Event.FAILED,
    model="mnist",
    repository="classifiers",
    phase="training",
    exit_status=1,
    link="https://docs.example.org/#failed",
    tail="last line",
)

#: Status, headers and body of one answer.
Answer = tuple[int, dict[str, str], bytes]


class Hook:
    """A webhook on this machine; answers in turn, the last one for ever."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []


@contextlib.contextmanager
def webhook(*answers: Answer | Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[Hook]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hook.paths.append(self.path)
            hook.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            answer = answers[min(len(hook.bodies), len(answers)) - 1]
            if callable(answer):
                answer(self)
                return
            status, headers, body = answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hook = Hook(f"http://127.0.0.1:{server.server_port}/services/{SECRET}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hook
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def nothing_shows_the_secret(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    caplog.set_level(logging.DEBUG)
    yield
    captured = capfd.readouterr()
    assert "SECRET" not in captured.out + captured.err + caplog.text


def test_delivered() -> None:
    with webhook((200, {}, b"ok")) as hook:
        assert notify(hook.url, NOTICE) is None
    assert hook.paths == [f"/services/{SECRET}"]
    assert hook.bodies[0]["text"].endswith("Training mnist of classifiers failed with exit status: 1")
    assert "last line" in json.dumps(hook.bodies[0]["blocks"])
    assert NOTICE.link in json.dumps(hook.bodies[0]["blocks"])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((404, {}, b"no_service"), "HTTP 404, the webhook does not exist any more, no_service"),
        ((403, {}, b"invalid_token"), "HTTP 403, the webhook is not allowed to post, invalid_token"),
        ((400, {}, f"bad {SECRET}".encode()), "HTTP 400, the message was refused"),
        ((410, {}, b""), "HTTP 410, the channel is archived"),
        ((404, {}, b"\xff\xfe"), "its answer is not valid"),
        ((429, {"Retry-After": "-1"}, b""), "its answer is not valid"),
        ((429, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, b""), "its answer is not valid"),
    ],
)
def test_final_refusal_is_one_line_and_not_retried(answer: Answer, words: str) -> None:
    with webhook(answer) as hook:
        problem = notify(hook.url, NOTICE)
    assert problem == f"The Slack notice was not delivered: {words}"
    assert len(hook.bodies) == 1


@pytest.mark.parametrize("error", [(429, {"Retry-After": "1"}, b""), (500, {}, b"oops"), (503, {}, b"")])
def test_temporary_error_is_retried(error: Answer) -> None:
    with webhook(error, (200, {}, b"ok")) as hook:
        assert notify(hook.url, NOTICE) is None
    assert len(hook.bodies) == 2
    assert hook.bodies[0] == hook.bodies[1]


def test_broken_connection_is_retried() -> None:
    def hang_up(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.close_connection = True

    with webhook(hang_up, (200, {}, b"ok")) as hook:
        assert notify(hook.url, NOTICE) is None
    assert len(hook.bodies) == 2


def test_retries_are_limited() -> None:
    with webhook((500, {}, f"oops {SECRET}".encode())) as hook:
        assert (
            notify(hook.url, NOTICE)
            == "The Slack notice was not delivered: HTTP 500, Slack has an internal error"
        )
    assert 2 <= len(hook.bodies) <= 4


def test_malformed_answer() -> None:
    with webhook(lambda handler: handler.wfile.write(b"\0\0 what\r\n\r\n")) as hook:
        assert notify(hook.url, NOTICE) == "The Slack notice was not delivered: its answer is not valid"


def test_long_retry_after_is_bounded() -> None:
    with webhook((429, {"Retry-After": "86400"}, b"rate_limited")) as hook:
        problem = notify(hook.url, NOTICE, 2)
    assert problem == "The Slack notice was not delivered: no success within 2 s"
    assert len(hook.bodies) == 1


@pytest.mark.parametrize("drip", [b"", b"HTTP/1.1 200 OK\r\nX-Long: "])
def test_no_answer_is_bounded(drip: bytes) -> None:
    over = threading.Event()

    def never(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(drip)
        with contextlib.suppress(OSError):
            # One byte at a time keeps every socket timeout from running out.
            while not over.wait(0.2):
                handler.wfile.write(b"x" if drip else b"")

    with webhook(never) as hook:
        begun = time.monotonic()
        problem = notify(hook.url, NOTICE, 2)
        took = time.monotonic() - begun
        over.set()
    assert problem in (
        "The Slack notice was not delivered: no success within 2 s",
        "The Slack notice was not delivered: no answer in time",
    )
    # Not a speed: that it ends by its own bound and not by the test's.
    assert took < 60


def test_refused_connection() -> None:
    with webhook((200, {}, b"ok")) as hook:
        url = hook.url
    problem = notify(url, NOTICE)
    assert problem == "The Slack notice was not delivered: no connection (Connection refused)"


@pytest.mark.parametrize(
    "identifier",
    [
        f"x{SECRET}",
        "T0SECRET",
        f"ftp://hooks.slack.com/{SECRET}",
        f"http://hooks.slack.com/services/{SECRET}",
        f"https://a b/{SECRET}",
        f"https://h/{SECRET}\nX: y",
        "💥SECRET",
    ],
)
def test_malformed_identifier(identifier: str) -> None:
    problem = notify(identifier, NOTICE)
    assert (
        problem
        == "The Slack notice was not delivered: the Slack webhook is neither T…/B…/… nor an https:// address"
    )


def test_identifier_is_a_path_or_an_address() -> None:
    url = f"https://hooks.slack.com/services/{SECRET}"
    for identifier in (SECRET, f"/{SECRET}", f"services/{SECRET}", f" {SECRET}\n", url):
        assert webhook_url(identifier) == url


def test_events_of_the_setting() -> None:
    assert events(None) == events("") == {Event.FAILED, Event.IDLE}
    assert events("success") == {Event.FAILED, Event.IDLE, Event.SUCCEEDED}
    assert events("start, cancelled") == {Event.FAILED, Event.IDLE, Event.STARTED, Event.CANCELLED}
    assert events("true") == events("all") == set(Event)
    assert events("none") == events("false") == frozenset()
    with pytest.raises(ValueError, match="'sucess' is none of start, success, cancelled, failure, idle"):
        events("sucess")


def test_success_has_the_link_to_the_run_and_the_metrics() -> None:
    url = "https://github.com/a/b/actions/runs/7"
    body = message(
        Notice(
            event=Event.SUCCEEDED, model="mnist", run_url=url, metrics={"test_accuracy": 0.97123}, seconds=200
        )
    )
    text = json.dumps(body)
    assert f"<{url}|open the run>" in text
    assert "*test\u200b_accuracy*\\n0.97123" in text.replace("\\u200b", "\u200b")
    assert "3 min 20 s" in text
    assert body["text"] == ":white_check_mark: Training mnist succeeded"


def test_untrusted_text_is_escaped_and_within_the_limits_of_slack() -> None:
    hostile = "<!channel> & <@U1> ```` *bold* \x1b[31mred\x1b[0m\x00"
    body = message(
        Notice(
            event=Event.FAILED,
            model=hostile,
            repository=hostile * 200,
            host=hostile * 100,
            phase=hostile,
            job="j",
            reason=hostile * 400,
            tail=f"{hostile * 500}\n" + f"{hostile}\n" * 1000 + "50%\r100% <done>\n",
            metrics={f"{hostile}{n}": float(n) for n in range(100)},
            run_url="https://github.com/a|b>/<!here>",
            exit_status=1,
        )
    )
    text = json.dumps(body, ensure_ascii=False)
    assert "<!" not in text
    assert "<@" not in text
    assert "\\u001b" not in text
    assert "\\u0000" not in text
    assert "100% &lt;done&gt;" in text
    assert "50%" not in text
    assert len(body["blocks"]) <= 50
    for block in body["blocks"]:
        assert 0 < len(block.get("text", {"text": "x"})["text"]) <= SECTION
        assert len(block.get("fields", [])) <= 10
        assert all(0 < len(field["text"]) <= 2000 for field in block.get("fields", []))
    tail = body["blocks"][-1]["text"]["text"]
    assert tail.startswith("```\n")
    assert tail.endswith("\n```")
    assert tail.count("```") == 2
