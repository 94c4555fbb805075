"""Posts one message to a Slack webhook, with slack_sdk's retries bounded by a deadline."""

import http.client
import logging
import re
import ssl
import time
from typing import Any
from urllib.error import URLError

from slack_sdk.http_retry.builtin_handlers import (
    ConnectionErrorRetryHandler,
    RateLimitErrorRetryHandler,
    ServerErrorRetryHandler,
)
from slack_sdk.http_retry.request import HttpRequest
from slack_sdk.http_retry.response import HttpResponse
from slack_sdk.http_retry.state import RetryState
from slack_sdk.webhook import WebhookClient

#: Attempts after the first, for all kinds of errors together.
RETRIES = 3
#: Seconds to wait for one answer.
ATTEMPT_S = 10.0

#: The meaning of Slack's short answers, for the reader who can act on them.
MEANINGS = {
    400: "the message was refused",
    403: "the webhook is not allowed to post",
    404: "the webhook does not exist any more",
    410: "the channel is archived",
}


class _RateLimit(RateLimitErrorRetryHandler):
    """Waits as long as Slack asks, if that is within the deadline."""

    def __init__(self, deadline: float) -> None:
        super().__init__(max_retry_count=RETRIES)
        self.deadline = deadline

    def _can_retry(
        self,
        *,
        state: RetryState,
        request: HttpRequest,
        response: HttpResponse | None = None,
        error: Exception | None = None,
    ) -> bool:
        if response is None or response.status_code != 429:
            return False
        asked = retry_after(response.headers)
        # One second more, because slack_sdk adds a random time of up to one second.
        return asked is not None and time.monotonic() + asked + 1 < self.deadline


class _ServerError(ServerErrorRetryHandler):
    """Tries again after any 5xx, not only the two that slack_sdk handles."""

    def __init__(self, deadline: float) -> None:
        super().__init__(max_retry_count=RETRIES)
        self.deadline = deadline

    def _can_retry(
        self,
        *,
        state: RetryState,
        request: HttpRequest,
        response: HttpResponse | None = None,
        error: Exception | None = None,
    ) -> bool:
        return response is not None and response.status_code >= 500 and time.monotonic() + 5 < self.deadline


class _Connection(ConnectionErrorRetryHandler):
    """Tries again after a refused or broken connection."""

    def __init__(self, deadline: float) -> None:
        super().__init__(max_retry_count=RETRIES)
        self.deadline = deadline

    def _can_retry(
        self,
        *,
        state: RetryState,
        request: HttpRequest,
        response: HttpResponse | None = None,
        error: Exception | None = None,
    ) -> bool:
        again = super()._can_retry(state=state, request=request, response=response, error=error)
        return again and time.monotonic() + 5 < self.deadline


def retry_after(headers: dict[str, Any]) -> int | None:
    """Return the seconds that a 429 asks to wait: 1 without a number, None for an invalid number."""
    for name, values in headers.items():
        if name.lower() == "retry-after":
            return int(values[0]) if re.match(r"[0-9]{1,6}\Z", str(values[0])) else None
    return 1


def send(url: str, body: dict[str, Any], total_s: float) -> str | None:
    """Post `body` and return None, or the reason why it was not delivered.

    Never raises, never names the address. No new attempt begins once `total_s` seconds would be over.
    """
    deadline = time.monotonic() + total_s
    logger = logging.getLogger("train_classifier.github_action.slack_webhook")
    # slack_sdk logs the address at its error level and below, so its logger is switched off.
    logger.setLevel(logging.CRITICAL + 1)
    try:
        client = WebhookClient(
            url,
            timeout=max(1, int(min(ATTEMPT_S, total_s))),
            logger=logger,
            retry_handlers=[_Connection(deadline), _RateLimit(deadline), _ServerError(deadline)],
        )
        answer = client.send_dict(body)
    except Exception as error:
        return _explain(error)
    if answer.status_code == 200:
        return None
    meaning = MEANINGS.get(answer.status_code)
    if answer.status_code == 429:
        meaning = "too many messages"
    elif answer.status_code >= 500:
        meaning = "Slack is in trouble"
    # Slack answers with one word (no_service); any other answer is not shown, as it may repeat the address.
    word = answer.body if re.match(r"[a-z_]{1,40}\Z", answer.body or "") else ""
    return f"HTTP {answer.status_code}" + "".join(f", {part}" for part in (meaning, word) if part)


def _explain(error: Exception) -> str:
    """Return a sentence for the kind of error only, because its text may contain the address."""
    cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
    if isinstance(cause, TimeoutError):
        return "no answer in time"
    if isinstance(cause, ssl.SSLError):
        return "its certificate was not accepted"
    if isinstance(cause, (http.client.HTTPException, UnicodeDecodeError)):
        return "its answer is not HTTP"
    if isinstance(cause, OSError):
        return f"no connection ({cause.strerror or type(cause).__name__})"
    return f"no connection ({type(cause).__name__})"
