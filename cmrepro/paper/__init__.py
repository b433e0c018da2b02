"""The paper as checked data: tables, claims, deviations, later work.

The numbers live in CSV and TOML files beside this module, each once and with its source.
No torch, no pandas.
"""

from cmrepro.paper.claims import (
    AbsoluteClaim,
    Claim,
    Deviation,
    Ordering,
    Setting,
    added_claims,
    claim,
    claims,
    deviations,
    recipes_of_rows,
    stand_ins,
    training_datasets,
)
from cmrepro.paper.tables import (
    LOWER_IS_BETTER,
    METRICS,
    TABLE3_RECIPES,
    Printed,
    hyperparameters,
    read_csv,
    result_rows,
)
