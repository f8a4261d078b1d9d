"""Processes that are killed, that end while they write, and that write at the same time."""

import os
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import elegy

# A tree whose arrays all say the same, and what follows of it.
PREAMBLE = """
    import os, random, signal, sys, threading, warnings
    import numpy as np
    import elegy
    from elegy.checkpoints import disk, store

    warnings.simplefilter("error", elegy.errors.ElegyWarning)
    store.is_writer = lambda: True  # JAX has threads once it is asked, which do not survive a fork
    directory = sys.argv[1]
    do = disk.do


    def state(value):
        return {"w": np.full(1000, float(value)), "value": value, "v": np.full((2, 3), value)}


    def check(checkpoints):
        loaded, extra = checkpoints.load(like=state(0))
        assert (loaded["w"] == loaded["value"]).all() and (loaded["v"] == extra["value"]).all()
        return loaded["value"]
"""

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


def start(code, directory):
    code = textwrap.dedent(PREAMBLE) + textwrap.dedent(code)
    command = [sys.executable, "-c", code, str(directory)]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def run(code, directory):
    process = start(code, directory)
    out, err = process.communicate()
    return process.returncode, out, err


def test_a_process_that_is_killed(tmp_path):
    code = """
        checkpoints = elegy.Checkpoints(directory, keep=2)
        for value in range(10**9):
            checkpoints.save(value // 3, state(value), {"value": value})
            print(value, flush=True)
    """
    process = start(code, tmp_path)
    assert process.stdout is not None and process.stderr is not None
    with process:
        written = [int(process.stdout.readline()) for _ in range(np.random.default_rng(0).integers(20, 30))]
        process.kill()
    checkpoints = elegy.Checkpoints(tmp_path)
    loaded, extra = checkpoints.load(like={"w": np.zeros(1000), "value": 0, "v": np.zeros((2, 3), int)})
    assert loaded["value"] == extra["value"] >= written[-2]  # that one was on the disk before the last was begun
    assert (loaded["w"] == loaded["value"]).all() and (loaded["v"] == loaded["value"]).all()
    checkpoints.save(10**9, {}, wait=True)
    assert [name for name in os.listdir(tmp_path) if not name.startswith("step-")] == []


@posix
def test_processes_that_are_killed_at_any_operation(tmp_path):
    """One process after another goes on where the last one was killed, in the middle of writing."""
    code = """
        generator = random.Random(0)


        def save_until_killed(number, first):
            count = 0

            def kill(operation, *arguments):
                nonlocal count
                count += 1
                if count == number:
                    if operation.__name__ == "write":
                        operation(arguments[0][: len(arguments[0]) // 2])
                        operation.__self__.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
                return do(operation, *arguments)

            disk.do = kill
            checkpoints = elegy.Checkpoints(directory, keep=2)
            for value in range(first, first + 10**6):
                checkpoints.save(value // 2, state(value), {"value": value}, wait=value % 2 == 0)


        newest = -1
        for _ in range(40):
            child = os.fork()
            if child == 0:
                save_until_killed(generator.randrange(1, 80), newest + 1)
            assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
            checkpoints = elegy.Checkpoints(directory)
            before, newest = newest, check(checkpoints) if checkpoints.steps else -1
            assert newest >= before
        elegy.Checkpoints(directory, keep=1, keep_best=0).save(10**9, {})
        print(newest)
    """
    returncode, out, err = run(code, tmp_path)
    assert returncode == 0, err
    assert int(out) > 40
    assert os.listdir(tmp_path) == ["step-1000000000"]


def test_of_several_processes_of_jax_the_first_writes(tmp_path):
    """An array that all of them have whole is saved by the first, and all of them read it."""
    code = """
        import os, sys, traceback
        import jax
        import numpy as np
        import elegy

        # At its end a process waits for the others, which wait for what this one failed to write.
        sys.excepthook = lambda *error: (traceback.print_exception(*error), sys.stderr.flush(), os._exit(1))
        directory, address, process = sys.argv[1], sys.argv[2], int(sys.argv[3])
        jax.distributed.initialize(address, num_processes=2, process_id=process)
        everywhere = jax.sharding.NamedSharding(jax.make_mesh([2], ["x"]), jax.sharding.PartitionSpec())
        array = jax.make_array_from_callback((3,), everywhere, lambda index: np.arange(3.0, dtype=np.float32)[index])
        assert jax.process_count() == 2 and not array.is_fully_addressable
        with elegy.Checkpoints(directory) as checkpoints:
            checkpoints.save(process, {"w": array})
        while not checkpoints.steps:
            pass
        assert checkpoints.steps == [0]
        loaded, _ = checkpoints.load(like={"w": array})
        assert loaded["w"].sharding == everywhere
        assert list(np.asarray(loaded["w"])) == [0, 1, 2]
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path), address]
    processes = [
        subprocess.Popen([*command, str(process)], stderr=subprocess.PIPE, text=True, env=environment)
        for process in (0, 1)
    ]
    for process in processes:
        _, errors = process.communicate()
        if process.returncode:  # the other one would wait for ever
            processes[1].kill()
        assert process.returncode == 0, errors
    assert os.listdir(tmp_path) == ["step-0000000000"]


@posix
def test_processes_that_write_at_the_same_time(tmp_path):
    code = """
        elegy.Checkpoints(directory).save(0, state(0), {"value": 0}, wait=True)
        children = []
        for offset in range(3):
            children.append(os.fork())
            if children[-1] == 0:
                with elegy.Checkpoints(directory, keep=2) as checkpoints:
                    for value in range(offset, 90, 3):
                        checkpoints.save(value // 6, state(value), {"value": value}, score=-value)
                os._exit(0)
        ended = []
        while len(ended) < 3:
            child, status = os.waitpid(-1, os.WNOHANG)
            ended += [status] if child else []
            check(elegy.Checkpoints(directory))
        elegy.Checkpoints(directory, keep=1, keep_best=0).save(20, {})
        print(ended)
    """
    returncode, out, err = run(code, tmp_path)
    assert (returncode, out) == (0, "[0, 0, 0]\n"), err
    assert os.listdir(tmp_path) == ["step-0000000020"]


def test_a_program_that_ends_writes_what_it_saved(tmp_path):
    code = """
        def late(*arguments):
            threading.main_thread().join()
            return do(*arguments)


        disk.do = late
        elegy.Checkpoints(directory).save(1, state(1), {"value": 1})
        print(os.listdir(directory))
    """
    assert run(code, tmp_path) == (0, "[]\n", "")
    assert elegy.Checkpoints(tmp_path).extra(1) == {"value": 1}


def test_a_failure_that_nobody_asked_for_is_shown_at_the_end(tmp_path):
    code = """
        def fail(*arguments):
            threading.main_thread().join()
            raise OSError(28, "No space left on device")


        disk.do = fail
        elegy.Checkpoints(directory).save(1, state(1))
    """
    _, _, err = run(code, tmp_path)
    assert "saving the checkpoint of step 1 to" in err and "No space left on device" in err


def test_a_program_that_ends_with_an_error_writes_what_it_saved(tmp_path):
    code = """
        elegy.Checkpoints(directory).save(1, state(1), {"value": 1})
        raise SystemExit(3)
    """
    assert run(code, tmp_path) == (3, "", "")
    assert elegy.Checkpoints(tmp_path).extra(1) == {"value": 1}
