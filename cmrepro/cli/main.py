"""The command line: commands that are imported when invoked, and exit codes of their errors."""

import importlib
import io
import os
import re
import sys

import click

# Module of each command, which may import torch, and its line in `cmrepro --help`, which must not.
COMMANDS = {
    "reproduce": ("reproduce", "Sample, score and compare with the paper: the main job."),
    "table3": ("tables", "Table 3, from the recipes that training uses."),
    "claims": ("report", "Claims of the paper, with the verdicts so far."),
    "theorems": ("theorems", "The paper's theorems, checked in numbers."),
    "deviations": ("tables", "Deviations of the official code from the paper."),
    "recipe": ("tables", "All recipes, or every field of one."),
    "checkpoints": ("checkpoints", "Checkpoints: list, fetch, clean, inspect, convert."),
    "train": ("train", "Train an EDM teacher, CD or CT."),
    "sample": ("sample", "Sample images from a checkpoint."),
    "search-times": ("sample", "Choose the second sampling time by FID."),
    "edit": ("edit", "Inpainting, colorization, super-resolution and other zero-shot editing."),
    "references": ("evaluate", "Reference statistics: list, fetch, build."),
    "anchors": ("evaluate", "Score real images, blurred real images and noise."),
    "evaluate": ("evaluate", "Score a sample set."),
    "report": ("report", "REPORT.md, tables, figures and the page, from the records."),
    "redo": ("sample", "Make a record again."),
    "compare": ("records", "Explain the differences between two records."),
    "records": ("records", "Records: validate, merge."),
    "doctor": ("doctor", "Check an installation, a sample set, a checkpoint or a record."),
}
SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}


class LazyGroup(click.Group):
    """Group that imports a command's module when the command is invoked."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        from cmrepro.schema import lookup  # here, since msgspec would slow `--help`

        module, _ = lookup("command", name, COMMANDS)
        commands = importlib.import_module(f"cmrepro.cli.{module}")
        return getattr(commands, name.replace("-", "_"))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings=SETTINGS)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="cmrepro")
def cli(debug: bool) -> None:
    """Reproduce "Consistency Models" (Song et al. 2023) and check how closely results match."""


def main() -> None:
    """Run the command line; exit code 0 done, 1 failed, 2 wrong usage or bad input."""
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):  # an encoding may lack a character of a name
            stream.reconfigure(errors="backslashreplace")
    home = os.path.expanduser("~")  # the shell leaves it in --option=~/path as it is
    options = re.compile(r"^(--[\w-]+=|)~(?=/|$)")
    words = [options.sub(lambda found: found[1] + home, word) for word in sys.argv[1:]]
    try:
        cli(words, standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # else it fails at the exit too
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if isinstance(error, BrokenPipeError):  # the reader, such as `head`, has enough
            sys.exit(1)
        from cmrepro.files import LONGEST, DownloadError, short

        if "--debug" in sys.argv:
            raise
        bad_input = isinstance(error, click.ClickException | ValueError | OSError)
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        text = text if bad_input else f"{type(error).__name__}: {text}"
        print(f"cmrepro: {short(' '.join(text.split()), LONGEST)}", file=sys.stderr)
        sys.exit(2 if bad_input and not isinstance(error, DownloadError) else 1)
