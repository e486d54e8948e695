"""What an engine is: a map of items to answers over workers that may end at any time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from anatomark.errors import InputError

Item = TypeVar("Item")
Answer = TypeVar("Answer")
MOST_WORKERS = 1024
MOST_KILLS = 2  # workers that an item may take along
MOST_STARTS = 3  # of a worker in a row, that may fail


@dataclass(frozen=True)
class Lost:
    """There is no answer: the worker of the item ended twice, and ``how`` at last."""

    how: str


class Engine(Protocol):
    """Does items in worker processes."""

    @property
    def workers(self) -> int:
        """How many; 0: as many as the cluster has room for."""
        ...

    def __call__(
        self, start: Callable[[], Callable[[Item], Answer]], items: Iterable[Item], threads: int = 1
    ) -> Iterator[tuple[Item, Answer | Lost]]:
        """Each item with its answer, as it is done, in any order; a few items for each worker are taken ahead.

        ``start`` is called once in each worker, of so many ``threads``, and gives what answers an item; it, items and
        answers pickle. An item whose worker ends is given to another once, then it is :class:`Lost`. Raises InputError
        where no worker can be started, or ``start`` raises; an error of an item is to be part of its answer.
        """
        ...


def never_started(how: str) -> InputError:
    """That workers end again and again before they can do anything."""
    return InputError(f"a worker process ends before it does anything ({how}); is there enough memory?")


def answer_to(start: Callable[[], Callable[[Any], Any]]) -> tuple[Callable[[Any], Any] | None, str]:
    """In a worker: what answers its items; or why there is nothing, in a line."""
    from anatomark.errors import reason_of

    try:
        return start(), ""
    except Exception as error:
        return None, reason_of(error)
