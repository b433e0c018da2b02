"""The official files by address: kind, size and checksum as published."""

import csv
import pathlib

with open(pathlib.Path(__file__).with_suffix(".csv"), newline="", encoding="utf-8") as file:
    ARTIFACTS = {row["url"]: row for row in csv.DictReader(file)}
