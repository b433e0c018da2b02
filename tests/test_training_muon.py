"""Muon against torch's own (in bfloat16, for matrices alone) and the polynomial in closed form."""

import torch
from torch import nn

from cmrepro.training.muon import NEWTON_SCHULZ, Muon, orthogonalize


def test_singular_values_follow_the_polynomial_and_vectors_stay() -> None:
    torch.manual_seed(0)
    for shape in ((6, 9), (9, 6), (7, 7)):
        matrix = torch.randn(shape)
        u, values, v = torch.linalg.svd(matrix.double(), full_matrices=False)
        values /= values.norm()
        for _ in range(5):
            a, b, c = NEWTON_SCHULZ
            values = a * values + b * values**3 + c * values**5
        expected = u @ values.diag() @ v
        # float32 through 5 polynomials whose slope is up to 3.4 each
        torch.testing.assert_close(orthogonalize(matrix).double(), expected, rtol=0, atol=1e-4)


def test_matrices_move_as_by_torchs_muon_and_vectors_as_by_radam() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(8, 32), torch.randn(8)
    conv = nn.Parameter(weight.view(8, 2, 4, 4).clone().to(memory_format=torch.channels_last))
    ours = [conv, nn.Parameter(bias.clone())]
    theirs = [nn.Parameter(weight.clone()), nn.Parameter(bias.clone())]
    optimizers = [
        Muon(ours, lr=1e-2),
        torch.optim.Muon(theirs[:1], lr=1e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.RAdam(theirs[1:], lr=1e-2),
    ]
    for _ in range(7):  # RAdam adapts from step 6 on
        gradient = torch.randn(8, 32)
        for a, b in zip(ours, theirs, strict=True):
            g = gradient if b.ndim == 2 else gradient[:, 0]
            a.grad, b.grad = g.reshape(a.shape).clone(), g.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(ours[1], theirs[1])
    moved = [p.detach().reshape(8, 32) - weight for p in (ours[0], theirs[0])]
    error = (moved[0] - moved[1]).norm() / moved[1].norm()
    assert error < 2e-2  # bfloat16 has 8 bits, through 5 iterations and 7 steps
