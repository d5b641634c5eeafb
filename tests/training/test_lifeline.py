"""A line from each process to process 0: all learn why one of them fails or dies, and nobody is alarmed by one that leaves."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from modelforge.errors import UserError
from modelforge.training import lifeline
from modelforge.training.lifeline import Lifeline
from modelforge.training.roll_call import Presence


@pytest.fixture
def lifelines() -> Iterator[list[Lifeline]]:
    """The ends of three processes."""
    store, everyone = HashStore(), [Presence(rank, host=f"node{rank}", pid=10 + rank) for rank in range(3)]
    with ThreadPoolExecutor(3) as pool:
        ends = list(pool.map(lambda me: Lifeline(store, everyone, me, host="127.0.0.1"), everyone))
    yield ends
    for end in ends:
        end.leave()


@pytest.mark.parametrize("failing", [0, 2])
def test_all_others_learn_why_a_process_fails(lifelines: list[Lifeline], failing: int) -> None:
    lifelines[failing].report("ValueError: a made-up\nfault")
    for number, end in enumerate(lifelines):
        if number != failing:
            assert end.news() == f"process {failing} on node{failing} (pid {10 + failing}) failed: ValueError: a made-up\nfault"


@pytest.mark.parametrize("killed", [0, 1])
def test_all_others_learn_of_a_process_that_ends_without_a_word(lifelines: list[Lifeline], killed: int) -> None:
    lifelines[killed]._close()  # without a word, as the system does at the end of a process
    for number, end in enumerate(lifelines):
        if number != killed:
            assert str(end.news()).startswith(f"process {killed} on node{killed} (pid {10 + killed}) ended without a word")


def test_news_is_passed_on_before_process_0_leaves(lifelines: list[Lifeline], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first word on a line is heard: after a farewell the others would wait for ever."""
    first, say = lifelines[0], lifelines[0]._say

    def slow_to_pass_on(word: str) -> None:
        if word != lifeline.FAREWELL:
            time.sleep(0.3)
        say(word)

    monkeypatch.setattr(first, "_say", slow_to_pass_on)
    lifelines[1]._close()
    news = first.news()
    first.leave()
    assert news is not None
    assert lifelines[2].news() == news


@pytest.mark.parametrize("leaving", [0, 1])
def test_nobody_is_alarmed_by_one_that_leaves(lifelines: list[Lifeline], leaving: int) -> None:
    lifelines[leaving].leave()
    assert [end.news(0.3) for end in lifelines] == [None] * 3


def test_a_stranger_at_the_door_is_not_taken_for_a_process() -> None:
    store, everyone = HashStore(), [Presence(0), Presence(1)]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(Lifeline, store, everyone, everyone[0], host="127.0.0.1")
        port = int(store.get("lifeline").decode().strip("[").split(",")[0])
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b'"guess 1"\n')
            assert stranger.recv(1) == b""
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"not a word\n")
            assert stranger.recv(1) == b""
        ends = [first, pool.submit(Lifeline, store, everyone, everyone[1], host="127.0.0.1")]
    ends[1].result().report("fault")
    assert str(ends[0].result().news()).endswith("failed: fault")
    ends[0].result().leave()


def test_a_process_that_does_not_connect_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifeline, "SECONDS_TO_CONNECT", 0.2)
    with pytest.raises(UserError, match=r"process 1 did not connect to process 0 at port \d+ within 0.2 s"):
        Lifeline(HashStore(), [Presence(0), Presence(1)], Presence(0), host="127.0.0.1")
