"""What several commands share: options, and how text becomes settings and rows text."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

OUT = click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Folder for what is written (default: the current one).",
)

FORMAT = click.option(
    "--format",
    "format_",
    default="table",
    show_default=True,
    help="table, md, csv, json or latex.",
)


class Device(click.ParamType):
    """A device of PyTorch that is here: cpu, cuda, cuda:N, mps or xpu."""

    name = "device"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name as it is; refuses one that PyTorch does not know or find."""
        if value == "cpu":
            return value
        if not re.fullmatch(r"(cuda|mps|xpu)(:\d+)?", value):
            self.fail(f"got {value}; allowed are cpu, cuda, cuda:N, mps and xpu", param, ctx)
        import torch

        kind, _, number = value.partition(":")
        count = torch.get_device_module(kind).device_count()
        if int(number or 0) >= count:
            self.fail(
                f"got {value}; PyTorch finds {count} {kind} devices here; choose another, or "
                "--device cpu",
                param,
                ctx,
            )
        return value


DEVICE = click.option("--device", type=Device(), default="cpu", show_default=True)


def parse_settings(text: str | None) -> dict[str, Any]:
    """{"total_steps": 20, …} from "total_steps=20,…": numbers, true, false, none, else text."""
    settings: dict[str, Any] = {}
    for part in text.split(",") if text else []:
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"got --set {part}; allowed is KEY=VALUE[,KEY=VALUE…]")
        settings[key.strip()] = _value(value.strip())
    return settings


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text in words:
        return words[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def parse_steps(text: str) -> int | list[float]:
    """A number of steps, or a list of times.

    Raises:
        ValueError: Neither.
    """
    try:
        return int(text) if "," not in text else [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(
            f"got --steps {text}; allowed is a number of steps or times t1,t2,…, e.g. 80,0.8"
        ) from error


def print_rows(rows: Sequence[Mapping[str, Any]], format_: str) -> None:
    """Print rows in a format."""
    from cmrepro.report.tables import render

    click.echo(render(rows, format_), nl=False)
