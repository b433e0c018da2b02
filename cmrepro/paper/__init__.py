"""The paper as checked data: tables, claims, deviations, later work.

The numbers live in CSV and TOML files beside this module, each once and with its source.
No torch, no pandas.
"""

from cmrepro.paper.claims import (
    ABLATED,
    AbsoluteClaim,
    Claim,
    Deviation,
    Ordering,
    Setting,
    ablated_fields,
    added_claims,
    claim,
    claims,
    demo_datasets,
    deviations,
    learning_rates,
    metrics,
    stand_ins,
)
from cmrepro.paper.tables import TABLE3_RECIPES, Printed, hyperparameters, later_work, result_rows
