"""Posts the result of a training run to Slack; never fails the job, and never shows the webhook."""

import dataclasses
import enum
import re
import threading
from collections.abc import Mapping
from typing import Any

from train_classifier.core.report.metrics import number
from train_classifier.core.text import show_seconds, without_escapes
from train_classifier.github_action import slack_webhook

#: Slack's limit: characters of the text of a section.
SECTION = 3000

WEBHOOK_PATH = re.compile(r"/?(?:services/)?(T[A-Za-z0-9_]{1,40}/B[A-Za-z0-9_]{1,40}/[A-Za-z0-9_]{1,80})\Z")
URL = re.compile(
    r"(https://[A-Za-z0-9.-]+(:[0-9]{1,5})?|http://(127\.0\.0\.1|localhost)(:[0-9]{1,5})?)/[!-~]*\Z"
)


class Event(enum.Enum):
    """The kinds of notices."""

    STARTED = "start"
    SUCCEEDED = "success"
    CANCELLED = "cancelled"
    FAILED = "failure"
    IDLE = "idle"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Notice:
    """One notice: the event, the model and the place."""

    event: Event
    model: str
    repository: str = ""
    host: str = ""
    job: str = ""
    #: The phase that failed or was cancelled.
    phase: str = ""
    #: The model's own exit status if it ran, else the exit code of train-classifier.
    exit_status: int | None = None
    reason: str = ""
    hint: str = ""
    #: Address of the page that explains the failure.
    link: str = ""
    #: Last lines of the log, with secrets already masked.
    tail: str = ""
    #: Seconds from submission to the end.
    seconds: float | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    #: Address of the workflow run, if there is one.
    run_url: str = ""


def webhook_url(identifier: str) -> str:
    """Return the webhook's address for the user's value: `T…/B…/…` (as in the original action) or a URL.

    Raises ValueError, whose text never holds the identifier.
    """
    identifier = identifier.strip()
    path = WEBHOOK_PATH.match(identifier)
    if path:
        return f"https://hooks.slack.com/services/{path[1]}"
    if URL.match(identifier):
        return identifier
    raise ValueError("the Slack webhook is neither T…/B…/… nor an https:// address")


def events(setting: str | None) -> frozenset[Event]:
    """Return the events to post: failures and idle GPUs always, unless the input slack-notify is `none`.

    `setting` is that input: names of events, or `all`, by comma or space. When it is empty, as with
    SLACK_IDENTIFIER only in the environment, nothing is added, because callers of the original action post
    success themselves.
    Raises ValueError for an unknown word.
    """
    words = (setting or "").replace(",", " ").lower().split()
    if words in (["none"], ["false"]):
        return frozenset()
    chosen = {Event.FAILED, Event.IDLE}
    for word in words:
        if word in ("all", "true"):
            chosen.update(Event)
        else:
            try:
                chosen.add(Event(word))
            except ValueError:
                names = ", ".join(event.value for event in Event)
                raise ValueError(f"slack-notify: {word!r} is none of {names}, all, none") from None
    return frozenset(chosen)


def escape(text: str) -> str:
    """Return text that Slack shows unchanged: no mention, no link, no control character."""
    text = without_escapes(text)
    text = "".join(letter if letter.isprintable() or letter in "\n\t" else " " for letter in text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def inline(text: str) -> str:
    """Return escaped text for one line, with nothing that Slack treats as formatting."""
    return re.sub(r"([*_~`])", "\u200b\\1", escape(" ".join(text.split())))


def unfenced(text: str) -> str:
    """Return escaped text that neither begins nor ends a code block."""
    return re.sub("`(?=`)", "`\u200b", text)


def shortened(text: str, limit: int) -> str:
    """Cut escaped text to `limit` characters, never inside an entity."""
    if len(text) <= limit:
        return text
    return re.sub(r"&[a-z]*\Z", "", text[: limit - 1]) + "…"


def last_lines(text: str, limit: int) -> str:
    """Return as many of the last lines, escaped for a code block, as fit into `limit` characters."""
    lines: list[str] = []
    space = limit
    for line in reversed(text.replace("\r\n", "\n").rstrip().split("\n")):
        # As on a terminal: text that a progress bar has overwritten is not shown.
        escaped_line = shortened(unfenced(escape(line.rpartition("\r")[2])), 400)
        if len(escaped_line) + 1 > space or len(lines) == 20:
            break
        space -= len(escaped_line) + 1
        lines.append(escaped_line)
    return "\n".join(reversed(lines))


def headline(notice: Notice) -> str:
    """Return the message's one sentence. For a failure it has the wording of the original action."""
    where = f" of {inline(notice.repository)}" if notice.repository else ""
    name = f"{inline(notice.model)}{where}"
    if notice.event is Event.STARTED:
        return f"Training {name} has started"
    if notice.event is Event.SUCCEEDED:
        return f"Training {name} succeeded"
    if notice.event is Event.CANCELLED:
        return f"Training {name} was cancelled"
    if notice.event is Event.IDLE:
        return f"Training {name} does not use its GPU"
    status = "unknown" if notice.exit_status is None else notice.exit_status
    return f"Training {name} failed with exit status: {status}"


def message(notice: Notice) -> dict[str, Any]:
    """Return the message for the webhook: a text for notifications, and blocks within Slack's limits."""
    text = shortened(headline(notice), 2900)
    if notice.run_url.startswith(("https://", "http://")):
        link = re.sub(r"[<>|\s]", "", notice.run_url)
        title = f"*{text}* · <{link.replace('&', '&amp;')}|open the run>" if len(link) < 1000 else f"*{text}*"
    else:
        title = f"*{text}*"
    icon = {
        Event.STARTED: ":hourglass_flowing_sand:",
        Event.SUCCEEDED: ":white_check_mark:",
        Event.CANCELLED: ":no_entry_sign:",
        Event.FAILED: ":x:",
        Event.IDLE: ":zzz:",
    }[notice.event]
    blocks = [_section(f"{icon} {title}" if len(title) < SECTION - 40 else f"{icon} {shortened(text, 2900)}")]

    facts = {"Phase": notice.phase, "Host": notice.host, "Job": notice.job}
    if notice.seconds is not None:
        facts["Duration"] = show_seconds(notice.seconds)
    # Slack accepts up to ten fields of 2000 characters in a section.
    pairs = [(name, shortened(inline(value), 300)) for name, value in facts.items() if value]
    pairs += [
        (shortened(inline(name), 80), f"{value:.6g}")
        for name, value in notice.metrics.items()
        if number(value) is not None
    ]
    fields = [{"type": "mrkdwn", "text": f"*{name}*\n{value}"} for name, value in pairs[:10]]
    if fields:
        blocks.append({"type": "section", "fields": fields})
    if notice.event is not Event.STARTED:
        reason = "\n".join(
            unfenced(escape(part)) for part in (notice.reason, notice.hint, notice.link) if part
        )
        if reason:
            blocks.append(_section(shortened(reason, SECTION)))
    if notice.event is Event.FAILED:
        tail = last_lines(notice.tail, SECTION - 20)
        if tail:
            blocks.append(_section(f"```\n{tail}\n```"))
    return {"text": f"{icon} {text}", "blocks": blocks}


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text}}


def notify(identifier: str, notice: Notice, total_s: float = 30.0) -> str | None:
    """Post a notice, always within `total_s` seconds.

    Never raises. Returns None when it was delivered, otherwise one line with the reason, without the address
    of the webhook.
    """
    try:
        url = webhook_url(identifier)
        body = message(notice)
    except ValueError as error:
        return f"The Slack notice was not delivered: {error}"
    outcome: list[str | None] = []
    # In a thread, because a name lookup, an answer that comes byte by byte and a long Retry-After ignore
    # every socket timeout.
    sender = threading.Thread(
        target=lambda: outcome.append(slack_webhook.send(url, body)), name="slack", daemon=True
    )
    sender.start()
    sender.join(total_s)
    problem = outcome[0] if outcome else f"no success within {total_s:g} s"
    return None if problem is None else f"The Slack notice was not delivered: {problem}"
