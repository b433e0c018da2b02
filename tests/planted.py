"""A pytest plugin that makes one part of the package worse: `-p planted --plant NAME`."""

import functools
import importlib
import time


def slower(function):
    """The same with 20 % more CPU time."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        start = time.process_time()
        result = function(*args, **kwargs)
        end = time.process_time()
        end += 0.2 * (end - start)
        while time.process_time() < end:
            pass
        return result

    return wrapped


def waiting(function):
    """The same after 50 ms without CPU time."""
    return lambda *args: (time.sleep(0.05), function(*args))[1]


def other_value(function):
    """The same with a value 0.5 % larger."""
    return lambda *args: 1.005 * function(*args)


CHANGES = {
    "sampler": (slower, "cmrepro.sampling", "sample"),
    "step": (slower, "cmrepro.training.step", "Training.train_step"),
    "metric": (slower, "cmrepro.metrics.frechet", "frechet_distance"),
    "score": (other_value, "cmrepro.metrics.evaluate", "frechet_distance"),
    "sampler waits": (waiting, "cmrepro.sampling", "_stages"),  # once a batch
    "step waits": (waiting, "cmrepro.training.step", "Training.train_step"),
}


def pytest_addoption(parser):
    parser.addoption("--plant", choices=CHANGES)


def pytest_sessionstart(session):
    change, module, path = CHANGES[session.config.getoption("--plant")]
    *parents, last = path.split(".")
    owner = functools.reduce(getattr, parents, importlib.import_module(module))
    setattr(owner, last, change(getattr(owner, last)))
