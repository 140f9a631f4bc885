"""The command ``mnv3-port``: parse, call one function, print. Commands do heavy imports themselves."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from porter.commands import convert, evaluate, inspect, obtain, predict, release, verify
from porter.errors import PorterError, PorterNote
from porter.text import shortened

COMPLETE = "_MNV3_PORT_COMPLETE"  # what click's shell scripts set
CLOSED_PIPE = 141  # 128 + SIGPIPE, as for other programs; 1 would mean no parity


def _debug(context: click.Context, _: click.Parameter, on: bool) -> None:
    if on:
        context.find_root().meta["debug"] = True


DEBUG = click.Option(["--debug"], is_flag=True, expose_value=False, callback=_debug, help="Show tracebacks.")


class Commands(click.Group):
    """A group that takes ``--debug`` before or after the command."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        cmd.params.append(DEBUG)
        super().add_command(cmd, name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the whole first paragraph of each command's help; click's own list cuts it."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, " ".join((one.help or "").partition("\n\n")[0].split())) for name, one in commands if one]
            )


@click.group(
    cls=Commands, params=[DEBUG], context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.version_option(package_name="mnv3-port", message="%(package)s %(version)s")
def cli() -> None:
    """Port TF/Models MobileNetV3 checkpoints to PyTorch, exactly, and prove it.

    Exit codes: 0 done, 1 no parity, 2 bad input, 3 a bug in mnv3-port.
    """


for command in (
    *(convert.convert, convert.draft, convert.export_tf),
    *(inspect.inspect, verify.verify, verify.verify_padding, inspect.diff),
    *(predict.predict, evaluate.evaluate),
    *(release.release,),
    *(obtain.demo, obtain.download),
):
    cli.add_command(command)


def main() -> None:
    """Run the command; expected errors become one line and exit code 2."""
    import signal

    if instruction := os.environ.get(COMPLETE):
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(cli, {}, "mnv3-port", COMPLETE, instruction))
    _open_closed_streams()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are removed
    warnings.showwarning = _show_warning
    context_meta: dict[str, Any] = {}
    try:
        with cli.make_context("mnv3-port", sys.argv[1:]) as context:
            context_meta = context.meta
            cli.invoke(context)
        sys.stdout.flush()
    except PorterError as error:
        _fail(f"Error: {error.for_command()}", error.exit_code, context_meta)
    except click.ClickException as error:
        with _errors():
            error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("Interrupted", 130, context_meta)
    except BrokenPipeError:  # the reader of our output, e.g. `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CLOSED_PIPE)
    except OSError as error:
        _fail(f"Error: {error.filename or 'input or output'}: {error.strerror or error}", 2, context_meta)
    except Exception as error:
        _fail(f"Error: unexpected {type(error).__name__}: {error} (a bug; --debug shows where)", 3, context_meta)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Print our own notes as one line each, and drop the warnings of libraries."""
    if issubclass(category, PorterNote):
        with _errors():
            click.echo(f"note      {shortened(str(message))}", err=True)


def _fail(message: str, code: int, meta: dict[str, Any]) -> None:
    if meta.get("debug"):
        raise
    with _errors():
        click.echo("\n".join(shortened(line) for line in message.split("\n")), err=True)
    sys.exit(code)


@contextmanager
def _errors() -> Iterator[None]:
    """Write to standard error. Where that fails, nobody can be told, and the exit code still says what happened."""
    try:
        yield
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # Python writes what is left once more at its end


def _open_closed_streams() -> None:
    """Open what a shell has closed (``>&-``) as nothing; else the next file that is opened would be printed into."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - for the whole run
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
