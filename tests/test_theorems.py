"""The theorems in numbers: every check holds, and a planted fault turns its verdict."""

from functools import partial

import pytest
import torch

from cmrepro.consistency import losses, solvers
from cmrepro.consistency.distances import l2
from cmrepro.experiments import theorems
from cmrepro.paper.theorems import statements
from cmrepro.report.theorems import theorem_figure, theorem_rows, verdict

STATEMENTS = {statement.id: statement for statement in statements()}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few replicates and a coarser reference: seconds."""
    monkeypatch.setattr(theorems, "NUM_REPLICATES", 4)
    monkeypatch.setattr(theorems, "REFERENCE_SCALES", 2049)


@pytest.fixture(params=["ring", "16-D"])
def data(request):
    return theorems.mixtures()[request.param]


def answers(tables):
    """Verdict of each table of errors."""
    checks = [theorems.slope_check(id, "ring", errors) for id, errors in tables]
    return {check.id: verdict(STATEMENTS[check.id], check) for check in checks}


def test_the_denoiser_is_that_of_the_density(data):
    """Tweedie: D = x_t + t² score."""
    x_t = 3 * data.sample(16, torch.Generator().manual_seed(0))
    t = torch.linspace(0.01, 3, 16, dtype=torch.float64)
    expected = x_t + t[:, None, None, None] ** 2 * data.score(x_t, t)
    torch.testing.assert_close(data.denoised(x_t, t), expected, atol=1e-12, rtol=1e-9)


def test_every_statement_is_checked_and_holds(monkeypatch):
    monkeypatch.setattr(theorems, "solver_errors", partial(theorems.solver_errors, count=8))
    checks = theorems.check_theorems()
    rows = theorem_rows(checks)
    assert [row["verdict"] for row in rows] == ["reproduced"] * len(rows)
    assert {check.id for check in checks} == STATEMENTS.keys()
    assert len(rows) == len(STATEMENTS) and len(checks) == 2 * len(rows)
    lines = theorem_figure(checks).axes[0].lines
    assert len(lines) == sum(bool(check.errors) for check in checks) / 2


def test_euler_for_heun_is_found(monkeypatch):
    monkeypatch.setitem(solvers.SOLVERS, "heun", solvers.euler_step)
    found = answers(theorems.solver_errors(theorems.mixtures()["ring"], 8))
    assert found["theorem1/heun/mean"] == found["theorem1/heun/sup"] == "not reproduced"
    assert found["self-consistency"] == "not reproduced"
    assert found["theorem1/euler/mean"] == "reproduced"


def test_second_slope_at_t_instead_of_s_is_found(monkeypatch):
    def faulty(denoiser, x_t, t, s):
        x_s = solvers.euler_step(denoiser, x_t, t, s)
        slopes = [solvers.ode_slope(x, denoiser(x, t), t) for x in (x_t, x_s)]
        return x_t + (s - t)[:, None, None, None] * sum(slopes) / 2

    monkeypatch.setitem(solvers.SOLVERS, "heun", faulty)
    found = answers(theorems.solver_errors(theorems.mixtures()["ring"], 8))
    assert found["theorem1/heun/mean"] == "not reproduced"


def test_times_in_the_wrong_order_are_found(monkeypatch, data):
    training = losses.consistency_training_loss
    monkeypatch.setattr(
        losses,
        "consistency_training_loss",
        lambda *rest: training(*rest[:4], rest[5], rest[4], rest[6]),
    )
    table = [("theorem2/l2", theorems.distillation_minus_training(data, l2))]
    assert answers(table) == {"theorem2/l2": "not reproduced"}
    assert answers(theorems.limit_errors(data))["theorem6"] == "not reproduced"


def test_a_wrong_score_is_found(monkeypatch, data):
    exact = type(data).denoised
    monkeypatch.setattr(
        theorems.Mixture, "denoised", lambda self, x, t, labels=None: exact(self, x, 2 * t)
    )
    table = [("theorem2/l2", theorems.distillation_minus_training(data, l2))]
    assert answers(table) == {"theorem2/l2": "not reproduced"}


def test_a_target_that_is_not_stopped_is_found(monkeypatch, data):
    monkeypatch.setattr(losses, "_target_output", lambda target, x_s, s, labels: target(x_s, s))
    found = answers(theorems.limit_errors(data))
    assert found["theorem5"] == found["theorem6"] == "not reproduced"
    assert found["theorem3"] == "reproduced"  # about the value, not the gradient


def test_noise_of_the_wrong_size_is_found(monkeypatch):
    stages = theorems.samplers.multistep_stages

    def faulty(f, times, z, *rest):
        return stages(f, times, torch.cat([z[:1], 1.5 * z[1:]]), *rest)

    monkeypatch.setattr(theorems.samplers, "multistep_stages", faulty)
    assert theorems.sampling_p_value(theorems.mixtures()["ring"]) < STATEMENTS["sampling"].at_least
