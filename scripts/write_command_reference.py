"""Write docs/command-line.md from the commands themselves; tests/test_documentation.py checks that it is current.

.venv/bin/python scripts/write_command_reference.py
"""

from pathlib import Path

import click

from porter.commands import cli

PAGE = Path(__file__).parents[1] / "docs" / "command-line.md"
HEAD = """# Command line

Every command takes `--debug` (show tracebacks) and `-h`.
Exit codes: 0 done, 1 no parity, 2 bad input, 3 a bug in mnv3-port.
Where an output may be `-`, that is standard output, and everything else that the command prints goes to standard error.
This page is written by `scripts/write_command_reference.py`.
"""


def reference() -> str:
    """The whole page."""
    parts = [HEAD]
    context = click.Context(cli, info_name="mnv3-port", **cli.context_settings)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        below = click.Context(command, info_name=name, parent=context, terminal_width=100, max_content_width=100)
        parts.append(f"## {name}\n\n```text\n{command.get_help(below)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(reference())
