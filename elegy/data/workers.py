"""Workers that make batches: threads or processes. Whatever they do, results are asked for in order."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import pickle
import queue
import signal
import threading
import traceback
import typing as tp
import weakref
from collections.abc import Callable

# Makes a batch of a pass, both by their numbers; it says by the third argument at which sample it is.
Make = Callable[[int, int, Callable[[int], None]], tp.Any]
Sent = tuple[bool, tp.Any]


class Threads:
    """Threads of this process. A task is a batch that was asked for; each has a queue of its own for its result."""

    def __init__(self, make: Make, n_workers: int):
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._pending: dict[tuple[int, int], _Task] = {}
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(
                target=_work_in_thread, args=(make, self._tasks, self._closed), daemon=True, name=f"elegy-data-{number}"
            )
            for number in range(n_workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, epoch: int, number: int) -> None:
        task = self._pending[epoch, number] = _Task(epoch, number)
        self._tasks.put(task)

    def result(self, epoch: int, number: int, timeout: float | None) -> tp.Any:
        task = self._pending.pop((epoch, number))
        try:
            done, value = task.result.get(timeout=timeout)
        except queue.Empty:
            raise late(task.sample, number, epoch, timeout) from None
        if not done:
            raise value
        return value

    def close(self, timeout: float | None = None) -> None:
        """Ends the threads: each finishes the sample at which it is, for which this waits, unless a timeout is set."""
        self._closed.set()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join(timeout)


class _Task:
    def __init__(self, epoch: int, number: int):
        self.epoch = epoch
        self.number = number
        self.sample: int | None = None
        self.result: queue.SimpleQueue[Sent] = queue.SimpleQueue()


class _ClosedError(Exception):
    """The batch is not wanted any more."""


def _work_in_thread(make: Make, tasks: queue.SimpleQueue[_Task | None], closed: threading.Event) -> None:
    while (task := tasks.get()) is not None:

        def at_sample(index: int, task: _Task = task) -> None:
            if closed.is_set():
                raise _ClosedError
            task.sample = index

        try:
            task.result.put((True, make(task.epoch, task.number, at_sample)))
        except _ClosedError:
            return
        except BaseException as error:
            task.result.put((False, error))


class Processes:
    """Processes that were started anew, each with a copy of what makes the batches, and a pipe.

    Batch number n of a pass is made by worker n modulo their number. A worker that has made a batch waits until the
    pipe has room for it, so that batches lie nowhere else.
    """

    def __init__(self, make: Make, n_workers: int, method: str):
        # Pickled here, so that a worker can send back why it could not read it.
        content = pickle.dumps(make)
        context: tp.Any = multiprocessing.get_context(method)
        self._workers: list[_Worker] = []
        self.close = weakref.finalize(self, _end, self._workers)
        for number in range(n_workers):
            ours, theirs = context.Pipe()
            sample = context.RawValue("q", -1)
            process = context.Process(
                target=work_in_process, args=(content, theirs, sample), daemon=True, name=f"elegy-data-{number}"
            )
            process.start()
            theirs.close()
            self._workers.append(_Worker(process, ours, sample))

    def submit(self, epoch: int, number: int) -> None:
        with contextlib.suppress(OSError):  # a worker that died is noticed where its result is wanted
            self._workers[number % len(self._workers)].pipe.send((epoch, number))

    def result(self, epoch: int, number: int, timeout: float | None) -> tp.Any:
        worker = self._workers[number % len(self._workers)]
        if not worker.ready:  # time counts from when it has started
            self._receive(worker, epoch, number, None)
            worker.ready = True
        return self._receive(worker, epoch, number, timeout)

    def _receive(self, worker: _Worker, epoch: int, number: int, timeout: float | None) -> tp.Any:
        if not multiprocessing.connection.wait([worker.pipe, worker.process.sentinel], timeout):
            raise late(_known(worker.sample.value), number, epoch, timeout)
        try:
            done, value = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            raise _died(worker, number, epoch) from None
        if not done:
            raise _revive(*value)
        return value


@dataclasses.dataclass
class _Worker:
    process: tp.Any
    pipe: tp.Any
    sample: tp.Any
    ready: bool = False


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.pipe.close()
        worker.process.terminate()
    for worker in workers:
        worker.process.join(5)
        if worker.process.is_alive():  # it does not listen
            worker.process.kill()
            worker.process.join()
        worker.process.close()
    workers.clear()


def work_in_process(content: bytes, pipe: tp.Any, sample: tp.Any) -> None:
    """What a worker process does, until the other end of its pipe is closed."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # the accelerator belongs to the process that trains
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends its workers
    try:
        make: Make = pickle.loads(content)
    except BaseException as error:
        pipe.send((False, _as_sent(error)))
        return

    def at_sample(index: int) -> None:
        sample.value = index

    pipe.send((True, None))
    while True:
        try:
            epoch, number = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = pickle.dumps((True, make(epoch, number, at_sample)))
        except BaseException as error:
            answer = pickle.dumps((False, _as_sent(error)))
        try:
            pipe.send_bytes(answer)
        except OSError:
            return


def _as_sent(error: BaseException) -> tuple[bytes | None, str, str]:
    """An error as it goes through a pipe: itself if it can be pickled, what it says, and its traceback."""
    text = "".join(traceback.format_exception(error))
    try:
        content = pickle.dumps(error)
        pickle.loads(content)  # some can be pickled, and not read again
    except Exception:
        content = None
    return content, f"{type(error).__name__}: {error}", text


def _revive(content: bytes | None, summary: str, text: str) -> BaseException:
    error = RuntimeError(summary) if content is None else pickle.loads(content)
    error.add_note(f"In a worker process:\n{text.rstrip()}")
    return error


def _known(sample: int) -> int | None:
    return None if sample < 0 else sample


def late(sample: int | None, number: int, epoch: int, timeout: float | None) -> TimeoutError:
    where = "no worker had begun with it" if sample is None else f"a worker is at sample {sample}"
    return TimeoutError(f"batch {number} of epoch {epoch} was not there after {timeout} seconds: {where}.")


def _died(worker: _Worker, number: int, epoch: int) -> RuntimeError:
    sample = _known(worker.sample.value)
    code = worker.process.exitcode
    where = f"at sample {sample}" if sample is not None else "as it started"
    why = f"killed by signal {-code}, as when memory is short" if code is not None and code < 0 else f"exit code {code}"
    hint = (
        "\n  It imports the main program: what starts training must stand under `if __name__ == '__main__':`."
        if sample is None
        else ""
    )
    return RuntimeError(f"the worker process that makes batch {number} of epoch {epoch} died {where} ({why}).{hint}")
