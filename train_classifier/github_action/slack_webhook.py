"""Posts one message to a Slack webhook, with slack_sdk's retries."""

import http.client
import logging
import re
import ssl
from typing import Any
from urllib.error import URLError

from slack_sdk.http_retry.builtin_handlers import (
    ConnectionErrorRetryHandler,
    RateLimitErrorRetryHandler,
    ServerErrorRetryHandler,
)
from slack_sdk.webhook import WebhookClient

#: Attempts after the first, for all kinds of errors together.
RETRIES = 3
#: Seconds to wait for one answer.
ATTEMPT_S = 10

#: The meaning of Slack's short answers, for the reader who can act on them.
MEANINGS = {
    400: "the message was refused",
    403: "the webhook is not allowed to post",
    404: "the webhook does not exist any more",
    410: "the channel is archived",
}


def send(url: str, body: dict[str, Any]) -> str | None:
    """Post `body` and return None, or the reason why it was not delivered.

    Never raises, never names the address. Waits as long as Slack asks: the caller bounds the whole.
    """
    logger = logging.getLogger("train_classifier.github_action.slack_webhook")
    # slack_sdk logs the address at its error level and below, so its logger is switched off.
    logger.setLevel(logging.CRITICAL + 1)
    handlers = (ConnectionErrorRetryHandler, RateLimitErrorRetryHandler, ServerErrorRetryHandler)
    try:
        client = WebhookClient(
            url, timeout=ATTEMPT_S, logger=logger, retry_handlers=[handler(RETRIES) for handler in handlers]
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
        meaning = "Slack has an internal error"
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
    if isinstance(cause, (http.client.HTTPException, ValueError)):
        return "its answer is not valid"
    if isinstance(cause, OSError):
        return f"no connection ({cause.strerror or type(cause).__name__})"
    return f"no connection ({type(cause).__name__})"
