"""The worker's log: masking across reads, and the limit."""

import os
import random
import threading
from pathlib import Path

import pytest

from train_classifier.worker.training.log import LogFile, Masker, Pump, make_fifo


def masked(secrets: list[bytes], blocks: list[bytes]) -> bytes:
    masker = Masker(secrets)
    return b"".join(masker.feed(block) for block in blocks) + masker.flush()


def test_secret_across_every_border() -> None:
    text = b"before hunter2-long after"
    for cut in range(len(text)):
        assert masked([b"hunter2-long"], [text[:cut], text[cut:]]) == b"before *** after"
    assert masked([b"hunter2-long"], [bytes([byte]) for byte in text]) == b"before *** after"


@pytest.mark.parametrize(
    ("secrets", "text", "shown"),
    [
        ([b"abc", b"abcdef"], b"xabcdefx", b"x***x"),
        ([b"abc", b"abcdef"], b"xabcdex", b"x***dex"),
        ([b"xab", b"abcdef"], b"-xabcdef-", b"-***-"),
        ([b"aa"], b"aaaaa", b"***"),
        ([b"line1\nline2"], b"say line1\nline2!", b"say ***!"),
        ([b"token\n"], b"token token\n", b"*** ***"),
        ([b""], b"nothing", b"nothing"),
        ([b"\xff\x00\xfe"], b"a\xff\x00\xfeb", b"a***b"),
        ([b"zz"], b"ends with z", b"ends with z"),
    ],
)
def test_secrets_are_masked_in_any_blocks(secrets: list[bytes], text: bytes, shown: bytes) -> None:
    assert masked(secrets, [text]) == shown
    # The union of overlapping secrets is hidden wherever the borders fall, without a trace of any of them.
    for cut in range(len(text)):
        output = masked(secrets, [text[:cut], text[cut:]])
        assert not any(secret and secret in output for secret in secrets)


@pytest.fixture
def chance() -> random.Random:
    """Random numbers; a failed test shows their seed."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    return random.Random(seed)


def test_random_streams_never_show_a_secret(chance: random.Random) -> None:
    for _ in range(300):
        secrets = [bytes(chance.choices(b"ab", k=chance.randint(2, 6))) for _ in range(2)]
        text = bytes(chance.choices(b"abc", k=200))
        cuts = sorted(chance.choices(range(200), k=10))
        blocks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, 200], strict=True)]
        output = masked(secrets, blocks)
        assert not any(secret in output for secret in secrets)
        assert output.count(b"c") == text.count(b"c")


def test_held_back_is_at_most_a_beginning() -> None:
    masker = Masker([b"password"])
    assert masker.feed(b"a line\npass") == b"a line\n"
    assert masker.feed(b"ing\n") == b"passing\n"


def test_long_secret_of_one_letter_is_quick() -> None:
    masker = Masker([b"a" * 100_000])
    assert masker.feed(b"a" * 99_999) == b""
    assert masker.feed(b"b" * 10) == b"a" * 99_999 + b"b" * 10


@pytest.mark.parametrize("size", [100, 4096, 4097, 100_000, 1_000_003])
@pytest.mark.parametrize("block", [1000, 4096, 70_000])
def test_limit_keeps_head_and_tail(tmp_path: Path, size: int, block: int) -> None:
    limit = 4096
    data = os.urandom(size)
    log = LogFile(tmp_path / "log.txt", limit)
    for at in range(0, size, block):
        log.write(data[at : at + block])
    log.close()
    content = (tmp_path / "log.txt").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]
    if size <= limit:
        assert content == data
        return
    assert len(content) < limit + 200
    head, _, ending = content.partition(b"\n[train-classifier: ")
    line, _, tail = ending.partition(b"]\n")
    assert head == data[: limit // 2]
    assert data.endswith(tail)
    assert len(tail) >= limit // 4
    assert int(line.split()[0]) == size - len(head) - len(tail)


def test_limit_outlives_the_writer(tmp_path: Path) -> None:
    data = os.urandom(50_000)
    first = LogFile(tmp_path / "log.txt", 4096)
    first.write(data[:30_000])
    # The first writer was killed: another one goes on with its files.
    second = LogFile(tmp_path / "log.txt", 4096)
    second.write(data[30_000:])
    second.close()
    content = (tmp_path / "log.txt").read_bytes()
    head, _, ending = content.partition(b"\n[train-classifier: ")
    line, _, tail = ending.partition(b"]\n")
    assert head == data[:2048] and data.endswith(tail)
    assert int(line.split()[0]) == len(data) - len(head) - len(tail)


def test_full_disk_does_not_stop_the_stream() -> None:
    log = LogFile.__new__(LogFile)
    with open("/dev/full", "ab", buffering=0) as full:
        log._file, log._room, log._tail, log.lost, log.error = full, 1 << 20, None, 0, None
        log.write(b"x" * 1000)
    assert log.lost == 1000
    assert log.error is not None and "No space left" in str(log.error)


def test_pump_moves_every_byte_and_ends(tmp_path: Path) -> None:
    make_fifo(tmp_path / "out")
    data = os.urandom(5_000_000)
    log = LogFile(tmp_path / "log.txt", 1 << 30)
    pump = Pump(tmp_path / "out", log, [b"never in there"])
    pump.start()

    def write() -> None:
        with open(tmp_path / "out", "wb") as fifo:
            fifo.write(data)

    writer = threading.Thread(target=write)
    writer.start()
    writer.join()
    # A child that keeps the FIFO open must not hang it.
    keeper = os.open(tmp_path / "out", os.O_WRONLY)
    pump.finish()
    os.close(keeper)
    log.close()
    assert (tmp_path / "log.txt").read_bytes() == data


@pytest.mark.parametrize("cut", range(1, 24))
def test_pause_in_the_middle_of_a_secret(cut: int) -> None:
    secret = b"hunter2-a-very-rare-word"
    masker = Masker([secret])
    shown = masker.feed(b"token=" + secret[:cut])
    early = masker.relax()
    # A quarter of it at most, however long the pause.
    assert len(early) <= len(secret) // 4 and masker.relax() == b""
    shown += early + masker.feed(secret[cut:] + b"\n") + masker.flush()
    assert shown == b"token=" + early + b"***\n"


def test_pause_after_what_only_looks_like_a_secret() -> None:
    masker = Masker([b"hunter2-a-very-rare-word"])
    assert masker.feed(b"> h") == b"> "
    assert masker.relax() == b"h"
    # A second pause, then it turns out to be something else: nothing is doubled, nothing lost.
    assert masker.feed(b"u") == b"" and masker.relax() == b"u"
    assert masker.feed(b"g me\n") + masker.flush() == b"g me\n"
    assert masker.feed(b"hunter2-a-very-rare-wor") == b"" and masker.relax() == b""
    assert masker.feed(b"k\n") == b"hunter2-a-very-rare-work\n"


def test_random_pauses_show_no_secret(chance: random.Random) -> None:
    for _ in range(300):
        secrets = [bytes(chance.choices(b"ab", k=chance.randint(4, 12))) for _ in range(2)]
        text = bytes(chance.choices(b"abc", k=200))
        masker, output, at = Masker(secrets), b"", 0
        while at < len(text):
            step = chance.randint(1, 12)
            output += masker.feed(text[at : at + step])
            at += step
            if chance.random() < 0.5:
                output += masker.relax()
        output += masker.flush()
        assert not any(secret in output for secret in secrets)
        assert output.count(b"c") == text.count(b"c")


def test_torn_count_of_what_was_dropped(tmp_path: Path) -> None:
    data = os.urandom(9000)
    LogFile(tmp_path / "log.txt", 4096).write(data)
    # Killed, or out of space, between making and filling it.
    (tmp_path / "log.dropped").write_text("")
    again = LogFile(tmp_path / "log.txt", 4096)
    again.write(b"the end")
    again.close()
    content = (tmp_path / "log.txt").read_bytes()
    assert content.startswith(data[:2048]) and content.endswith(b"the end") and data[-500:] in content
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]


def test_pump_outlives_a_log_and_a_listener_that_fail(tmp_path: Path) -> None:
    make_fifo(tmp_path / "out")
    log = LogFile(tmp_path / "log.txt", 1 << 30)
    log._file.close()
    log._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    pump = Pump(tmp_path / "out", log, [])

    def refuse(error: OSError) -> None:
        raise error

    pump.on_error = refuse
    pump.start()
    with open(tmp_path / "out", "wb", buffering=0) as fifo:
        for _ in range(100):
            fifo.write(bytes(65536))
    pump.finish()
    assert pump.failure is None and log.lost == 100 * 65536
