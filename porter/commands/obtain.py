"""``demo``, ``download``: getting checkpoints."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from porter.commands.options import FILE, OUTPUT, VARIANT, claim_outputs, echo_lines, print_port, size_text
from porter.errors import Option, PorterError


@click.command()
@click.option("--variant", type=VARIANT, default="small_075")
@click.option("--out", type=FILE, metavar="FOLDER", help="Keep the files here.")
@click.option("--force", is_flag=True, help="Overwrite the files of an earlier demo.")
def demo(variant: str, out: Path | None, force: bool) -> None:
    """Make a small real checkpoint of untrained weights, convert it and verify it."""
    import tempfile

    from porter.atomic import check_folder, refuse_existing
    from porter.exports.convert import convert
    from porter.mapping.files import load_variant
    from porter.parity.demo import write_demo_checkpoint
    from porter.parity.verify import verify
    from porter.report.verdict_table import print_verdict

    if force and not out:
        raise click.UsageError("--force is for the files of --out")
    variant = load_variant(variant).variant  # from timm's name of it
    with tempfile.TemporaryDirectory(prefix="mnv3-port-demo-") as temporary:
        folder = out or Path(temporary)
        check_folder(folder)
        refuse_existing(folder / f"{variant}.pth", force)
        source = write_demo_checkpoint(folder, variant)
        echo_lines([f"made      {source} (TensorFlow V2 checkpoint, untrained weights)", ""])
        artifact = folder / f"{variant}.pth"
        echo_lines([f"$ mnv3-port convert --variant {variant} {source} -o {artifact}"])
        path, port = convert(source, artifact, variant, force=force)
        print_port(port, variant)
        echo_lines([f"wrote     {path} ({size_text(path)})"])
        echo_lines(["", f"$ mnv3-port verify --variant {variant} {source} {artifact}"])
        verdict = verify(source, artifact, variant)
        print_verdict(verdict)
    sys.exit(0 if verdict.passed else 1)


@click.command()
@click.option("--variant", type=VARIANT, help="A released classifier, e.g. small_075, or timm's name of one.")
@click.option("-o", "--output", type=OUTPUT, metavar="FILE|-", help="Default: the tarball's own name.")
@click.option("--url", help="Fetch from here instead of Google's storage.")
@click.option("--sha256", metavar="HEX", help="Refuse any other content.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
def download(variant: str | None, output: Path | None, url: str | None, sha256: str | None, force: bool) -> None:
    """Fetch the released tarball of a variant; resumes an earlier attempt that broke off."""
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

    from porter.report.console import progress_bar
    from porter.sources.download import download

    address = url or _released(variant)
    path = output or Path(address.rsplit("/", 1)[-1])
    claim_outputs(path)
    with progress_bar(BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(variant or path.name, total=None)

        def advance(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        download(address, path, sha256=sha256, force=force, progress=advance)
    echo_lines([f"wrote     {path} ({size_text(path)})"])


def _released(variant: str | None) -> str:
    """Where Google keeps the tarball of ``variant``. Raises PorterError that names the variants with one."""
    from porter.mapping.files import did_you_mean, list_networks, load_variant, variant_named

    name = variant and variant_named(variant)
    if name and (url := load_variant(name).url):
        return url
    released = [one for one in list_networks() if load_variant(one).url]
    said = f"{variant}: no released tarball{did_you_mean(variant, released)}" if variant else "--variant is missing"
    raise PorterError(f"{said}; there are {', '.join(released)}. Any other address:", option=Option("url", "URL"))
