"""The terminal face: commands of this folder, and one for each kind of job."""

from __future__ import annotations

import importlib
import io
import os
import sys

import click

from homolog import __version__

# Commands that are more than a job; ``module:function``, ``command`` by default.
_OWN = {
    "demo": "train:demo",
    "doctor": "look:doctor",
    "few-voxels": "few_voxels",
    "finetune": "train:finetune",
    "gui": "look:gui",
    "info": "look:info",
    "methods": "look:methods",
    "models": "models",
    "pretrain": "train:pretrain",
    "runs": "runs",
}


class _LazyGroup(click.Group):
    """Imports a command only when it is run or its help is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from homolog.cli._jobs import job_commands

        return sorted({*_OWN, *(words.split()[0] for words in job_commands())})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in _OWN:
            file, _, attribute = _OWN[name].partition(":")
            module = importlib.import_module(f"{__name__}.{file}")
            command: click.Command = getattr(module, attribute or "command")
            return command
        from homolog.cli._jobs import job_command, job_commands

        commands = job_commands()
        return job_command(name, commands) if name in commands else None

    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            rows.append((name, command.get_short_help_str(90) if command else ""))
        if not rows:
            return
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(
    cls=_LazyGroup,
    name="homolog",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="homolog")
def cli() -> None:
    """Pretrain on unlabelled scans, see what was learnt, label a little, segment.

    \b
    homolog demo                                  the whole path on built-in data
    homolog prepare SCANS --out store             any folder of scans -> a store
    homolog pretrain s2dc store --out runs/pre    learn without labels
    homolog finetune segment store --encoder runs/pre --out runs/seg
    homolog predict scan.nii.gz --model runs/seg --out labels

    What is written is readable by you alone; HOMOLOG_UMASK=007 lets your group in.
    """  # noqa: D301 - click reads the backspace


# What several processes do together; anything else would be done by each of them.
_TOGETHER = (["pretrain"], ["finetune"], ["runs", "resume"])


def _leaves_it_to_the_first(words: list[str]) -> bool:
    """Whether this is one of many processes of torchrun, and the command for one."""
    count = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if count < 2 or any(words[: len(known)] == known for known in _TOGETHER):
        return False
    if os.environ["RANK"] != "0":
        return True
    print(
        f"homolog: {' '.join(words[:1])} works in one process, the other {count - 1} "
        "that torchrun began do nothing.",
        file=sys.stderr,
    )
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)  # this process, and what it starts, is alone
    return False


def main() -> None:
    """Entry point: errors become one sentence and an exit status (0, 1, 2, 130)."""
    from homolog.cli._run import exit_status
    from homolog.writing import keep_private

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a code page that lacks a letter of a name ends no command
            stream.reconfigure(errors="backslashreplace")
    if _leaves_it_to_the_first(sys.argv[1:]):
        sys.exit(0)
    try:
        keep_private()
        status = cli(standalone_mode=False)
    except BaseException as error:
        status = exit_status(error)
    sys.exit(status if isinstance(status, int) else 0)
