"""A pytest plugin that makes one part of the package worse: `-p planted --plant NAME`."""

import functools
import importlib
import time

# Name -> module and function, and by how much its CPU time or its value grows.
SLOWER = {
    "sampler": ("cmrepro.sampling", "sample"),
    "step": ("cmrepro.training.step", "Training.train_step"),
    "metric": ("cmrepro.metrics.frechet", "frechet_distance"),
}
OTHER_VALUE = {"score": ("cmrepro.metrics.evaluate", "frechet_distance")}
WAITS = {  # once a batch
    "sampler-waits": ("cmrepro.sampling", "_stages"),
    "step-waits": ("cmrepro.training.step", "Training.train_step"),
}


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

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        time.sleep(0.05)
        return function(*args, **kwargs)

    return wrapped


def other_value(function):
    """The same with a value 0.5 % larger."""
    return lambda *args: 1.005 * function(*args)


CHANGES = {
    name: (change, place)
    for change, places in ((slower, SLOWER), (other_value, OTHER_VALUE), (waiting, WAITS))
    for name, place in places.items()
}


def pytest_addoption(parser):
    parser.addoption("--plant", choices=[*CHANGES])


def pytest_sessionstart(session):
    name = session.config.getoption("--plant")
    change, (module, path) = CHANGES[name]
    *parents, last = path.split(".")
    owner = functools.reduce(getattr, parents, importlib.import_module(module))
    setattr(owner, last, change(getattr(owner, last)))
