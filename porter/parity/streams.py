"""Results of a computation one at a time, on demand, so that two can run side by side."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


class _Stopped(Exception):
    """Raised in the producer when its results are no longer wanted."""


def streamed(produce: Callable[[Callable[[Item], None]], None]) -> Iterator[Item]:
    """What ``produce(give)`` gives, one at a time: ``give`` blocks until the next one is asked for.

    So results that are overwritten later, or are too many to keep, can be compared as they come. ``produce`` runs in
    its own thread, which ends with the iterator; its exceptions are raised here.
    """
    given: queue.SimpleQueue[tuple[bool, Item | BaseException | None]] = queue.SimpleQueue()
    wanted = threading.Semaphore(0)
    stopped = False

    def wait() -> None:
        wanted.acquire()
        if stopped:
            raise _Stopped

    def give(item: Item) -> None:
        given.put((True, item))
        del item
        wait()

    def work() -> None:
        try:
            wait()
            produce(give)
            given.put((False, None))
        except _Stopped:
            pass
        except BaseException as error:
            given.put((False, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            wanted.release()
            more, item = given.get()
            if isinstance(item, BaseException):
                raise item
            if not more:
                return
            yield item  # type: ignore[misc]
            del item
    finally:
        stopped = True
        wanted.release()
        thread.join()
