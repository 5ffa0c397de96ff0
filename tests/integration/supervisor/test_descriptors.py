"""The agent's descriptors while it starts supervisors: none of another thread is closed."""

from __future__ import annotations

import os
import threading

import uvloop

from agent.supervisor.client import _started


def test_starting_a_supervisor_closes_no_file_of_another_thread(tmp_path) -> None:
    """uvloop closes the number of a pipe twice; by the second time it may be a checkout's, or a connection's."""
    wrong: list[OSError] = []
    over = threading.Event()

    def open_and_close() -> None:
        while not over.is_set():
            try:
                file = os.open(os.devnull, os.O_RDONLY)
                for _ in range(3):
                    os.fstat(file)
                os.close(file)
            except OSError as error:
                wrong.append(error)

    async def start_many() -> None:
        for _ in range(300):
            with (tmp_path / "log").open("ab") as log:
                assert not await _started(["/bin/true"], log)

    threads = [threading.Thread(target=open_and_close) for _ in range(4)]
    for each in threads:
        each.start()
    try:
        uvloop.run(start_many())
    finally:
        over.set()
        for each in threads:
            each.join()
    assert not wrong
