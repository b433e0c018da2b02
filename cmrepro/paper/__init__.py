"""The paper as checked data: tables, claims, deviations, later work.

The numbers live in CSV and TOML files beside this module, each once and with its source.
No torch, no pandas.
"""

from cmrepro.paper.claims import (
    ABLATED,
    AbsoluteClaim,
    Deviation,
    Ordering,
    Setting,
    ablated_fields,
    claim,
    claims,
    deviations,
    metrics,
)
from cmrepro.paper.tables import TABLE3_RECIPES, Printed, hyperparameters, later_work, result_rows
