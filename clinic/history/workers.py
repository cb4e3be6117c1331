"""Verifies ranges of chains in several processes, which all see the same state of the database."""

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from typing import Any, cast

from sqlalchemy import Connection

from clinic.history import snapshots
from clinic.history.keys import Keyring
from clinic.history.ranges import Range, faults_in
from server.database import reader

TRIES = 20  # to have all processes of SQLite begin while nobody commits


class Team:
    """The processes that verify beside this one. There may be none: then this process does all the work."""

    def __init__(self, connection: Connection, pipes: list[Pipe]) -> None:
        self.connection, self.pipes = connection, pipes

    def faults(self, ring: Keyring, parts: list[Range]) -> Iterator[str]:
        """Yield the faults of all ranges, as they are found. What a process fails to do, this process does."""
        rest, idle, busy = iter(parts), list(self.pipes), dict[Pipe, Range]()
        while True:
            while idle and (part := next(rest, None)):
                pipe = idle.pop()
                busy[pipe] = part
                _send(pipe, (ring, part))
            if not busy:
                break
            for pipe in cast(list[Pipe], wait(list(busy))):
                part, found = busy.pop(pipe), _received(pipe)
                yield from faults_in(self.connection, ring, part) if found is None else found
                if found is not None:
                    idle.append(pipe)
        for part in rest:
            yield from faults_in(self.connection, ring, part)


@contextmanager
def team(connection: Connection, number: int) -> Iterator[Team]:
    """Yield a team of `number` processes that see what `connection` sees. It may begin a new transaction on SQLite."""
    with ExitStack() as started:
        pipes = [started.enter_context(_process()) for _ in range(number)]
        if pipes and not (all(_received(pipe) for pipe in pipes) and _agree(connection, pipes)):
            pipes = []
        yield Team(connection, pipes)


@contextmanager
def _process() -> Iterator[Pipe]:
    """Start a process, and yield the pipe to it. A new interpreter: a copy of this one would share its connections."""
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=_serve, args=(its, *snapshots.address()), daemon=True)
    process.start()
    its.close()
    try:
        yield ours
    finally:
        ours.close()  # ends the process, if it waits
        process.join(5)
        process.kill()
        process.join()


def _agree(connection: Connection, pipes: list[Pipe]) -> bool:
    """Have all processes see the state that `connection` sees. Return whether they do."""
    if connection.dialect.name == "postgresql":
        return _all_begin(pipes, snapshots.exported(connection))
    with reader().execution_options(isolation_level="AUTOCOMMIT") as watch:
        for _ in range(TRIES):
            before = snapshots.states(watch)
            connection.rollback()
            snapshots.settle(connection)
            if _all_begin(pipes, "") and snapshots.states(watch) == before:
                return True
    return False


def _all_begin(pipes: list[Pipe], name: str) -> bool:
    for pipe in pipes:
        _send(pipe, name)
    answers = [_received(pipe) for pipe in pipes]  # of every process, whatever the first answers
    return all(answers)


def _send(pipe: Pipe, order: object) -> None:
    try:
        pipe.send(order)
    except OSError:
        return  # the process has ended: `_received` tells


def _received(pipe: Pipe) -> Any:
    """Return what a process answers, or None if it failed or has ended."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None


def _serve(pipe: Pipe, url: str, connect_args: dict[str, Any]) -> None:
    """Follow the orders of the other process until it closes the pipe. Answers None to what failed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process ends this one
    with snapshots.connected(url, connect_args) as connection:
        pipe.send(True)
        while True:
            try:
                order = pipe.recv()
            except EOFError:
                return
            try:
                answer: Any = _followed(connection, order)
            except Exception:  # the other process tries it, and tells
                answer = None
            pipe.send(answer)


def _followed(connection: Connection, order: Any) -> Any:
    if isinstance(order, str):
        snapshots.begin(connection, order)
        return True
    ring, part = order
    return list(faults_in(connection, ring, part))
