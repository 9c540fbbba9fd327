"""The command `scan`: is this model backdoored?"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gifthorse.cli import many, options, parsing
from gifthorse.cli.border import ERROR, unforeseen
from gifthorse.cli.engines import Address
from gifthorse.cli.terminal import bar, going_on, note, say
from gifthorse.cli.writing import UNWRITTEN, drawn, gathered, show
from gifthorse.core.errors import BadOption, GifthorseError, Unwritable
from gifthorse.core.isolated import readers
from gifthorse.report.saving import save

if TYPE_CHECKING:
    from gifthorse.core.types import Report
    from gifthorse.report import FailOn
    from gifthorse.workflows.opening import Inputs
    from gifthorse.workflows.scan import Request

commands = typer.Typer()  # what `gifthorse.cli.app` takes its command from


@commands.command()
def scan(  # noqa: PLR0913, PLR0917 - a flag is a parameter
    images: Annotated[
        str | None, typer.Option(help="Clean images: folder, .npz, NAME[:SPLIT].")
    ] = None,
    no_images: Annotated[
        bool, typer.Option("--no-images", help="Run only what needs none (weaker; no verdict).")
    ] = False,
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="Model files and folders.")
    ] = None,
    from_list: Annotated[
        str | None,
        typer.Option("--from", metavar="LIST", help="A file with one model a line; - for stdin."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Scan so many models at once; one table at the end.")
    ] = None,
    executor: Annotated[str | None, typer.Option(help="serial, pool or ray; default pool.")] = None,
    address: Address = None,
    arch: options.Arch = None,
    part: options.Part = None,
    signer_key: options.SignerKey = None,
    normalize: options.Normalize = "auto",
    input_size: options.InputSize = None,
    limit: Annotated[int, typer.Option(help="Use at most so many images.")] = 1000,
    class_order: Annotated[
        str, typer.Option(help="given, or found: renumber classes that are in another order.")
    ] = "given",
    device: options.Device = "auto",
    preset: Annotated[
        str, typer.Option(help="What runs, one of `gifthorse list presets`.")
    ] = "standard",
    detector: Annotated[
        list[str] | None,
        typer.Option(help="One of `gifthorse list detectors`, in place of --preset; repeatable."),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Search these target classes only: 0,3,7-9.")
    ] = None,
    class_pairs: Annotated[
        bool, typer.Option("--pairs", help="Search every pair of classes (slow).")
    ] = False,
    changes: options.Options = None,
    time_limit: Annotated[
        str | None, typer.Option(help="Stop the search of a model after 90, 90s, 10m or 1h.")
    ] = None,
    budget: Annotated[
        int | None, typer.Option(help="Stop it after so many image-steps (forward and back).")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep a stopped search here, and go on with one."),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of `gifthorse calibrate`.")
    ] = None,
    seed: options.Seed = 0,
    output_format: Annotated[
        str, typer.Option("-f", "--format", help="What is printed, of `gifthorse list formats`.")
    ] = "text",
    out: Annotated[
        list[str] | None, typer.Option("-o", "--out", metavar="FORMAT=PATH", help="Also write.")
    ] = None,
    fail_on: Annotated[
        str, typer.Option(help="backdoored, suspicious or inconclusive.")
    ] = "suspicious",
    exit_zero: Annotated[bool, typer.Option("--exit-zero", help="Exit 0 on findings.")] = False,
    truth: Annotated[
        Path | None, typer.Option(help="The true trigger, if known: say how well it was found.")
    ] = None,
) -> None:
    """Say whether model files are backdoored, for which class, and how sure that is."""
    readers.prepare()
    from gifthorse.workflows import scan as scanning
    from gifthorse.workflows.opening import Inputs

    if (images is None) != no_images:
        raise BadOption(
            "--images and --no-images exclude each other"
            if no_images
            else "clean images are missing: name a folder or a file with --images, or say "
            "--no-images, which can only raise suspicion"
        )
    size = parsing.size(input_size)
    inputs = Inputs(images, arch, normalize, size, limit, device, part, class_order, signer_key)
    request = scanning.Request(
        detectors=tuple(detector or ()),
        options=parsing.pairs(changes),
        preset=preset,
        classes=parsing.classes(classes) if classes is not None else (),
        pairs=class_pairs,
        time_limit=parsing.seconds(time_limit),
        budget=budget,
        resume=resume,
        seed=seed,
        command=shlex.join(["gifthorse", *sys.argv[1:]]),
        calibration=calibration,
    )
    models = [*(models or ()), *many.listed(from_list)]
    if from_list is not None or jobs is not None or executor is not None:
        if truth is not None:
            raise BadOption("--truth is of one model: leave out --from, --jobs and --executor")
        crowd, asked = many.Crowd(executor, jobs, address, from_list), out or ()
        codes = many.scan_many(
            models, inputs, request, crowd, form=output_format, out=asked, fail_on=fail_on
        )
        raise typer.Exit(gravest(codes, exit_zero))
    if not models:
        raise BadOption("there is no model to scan: name one, or list some with --from")
    reports = _Reports(parsing.fail_on(fail_on), output_format, out or (), truth)
    raise typer.Exit(gravest(reports.of_each(models, inputs, request), exit_zero))


@dataclass(frozen=True)
class _Reports:
    """What is shown and written of each model.

    Attributes:
        fail: The mildest verdict that counts as a finding.
        form: The format that is printed.
        out: Formats and files that are written.
        truth: The true trigger, if it is known.
    """

    fail: FailOn
    form: str
    out: Sequence[str]
    truth: Path | None

    def of_each(self, models: Sequence[str], inputs: Inputs, request: Request) -> set[int]:
        """Scan models one after another, and return their exit statuses."""
        from gifthorse.report import exit_code
        from gifthorse.triggers.storage import open_trigger
        from gifthorse.workflows import scan as scanning

        files = parsing.outputs(self.form, self.out, models)
        read = (*models, inputs.images, inputs.arch, self.truth, request.calibration, inputs.signer)
        parsing.keep(files.paths, read)
        scanning.check(inputs, request)
        known = open_trigger(self.truth) if self.truth is not None else None
        codes: set[int] = set()
        alone = len(models) == 1
        with gathered(models, self.form, files.together, codes) as summary:
            for model, row in zip(models, files.each, strict=True):
                with (
                    bar(Path(model).name) as progress,
                    going_on(request.resume, request.command),
                    contained(model, codes, alone=alone),
                ):
                    scanned = partial(scanning.scan, model, inputs, request, progress)
                    report = examined(model, scanned)
                    codes.add(exit_code(report, self.fail))
                    summary.add(model, report)
                    show(report, self.form, self.fail, alone=alone)
                    save(row, partial(drawn, report), note)
                    if known is not None:
                        note(scanning.compared(report, known, str(self.truth)))
        return codes


def examined(model: str, scanned: Callable[[], Report]) -> Report:
    """Return the report of a scan; of one that met what nobody foresaw a report that says so."""
    from gifthorse.core.types import Origin, Report

    try:
        with redirect_stdout(sys.stderr):  # what a net prints is no part of a report
            return scanned()
    except (GifthorseError, KeyboardInterrupt):
        raise
    except BaseException as error:
        words = unforeseen(error)
        say(f"gifthorse: {words}")
        return Report("ERROR", words, Origin(path=model), None, (), (), (), (), None)


def gravest(codes: Collection[int], exit_zero: bool = False) -> int:
    """Return the status of several models: a finding before an error, that before no verdict.

    But a report that could not be written is an error whatever it says.

    Example:
        >>> gravest({0, 3, 4}), gravest({4, 1}), gravest({1}, exit_zero=True)
        (4, 1, 0)
    """
    order = (UNWRITTEN, *(() if exit_zero else (1,)), 2, 4, 3)
    code = next((c for c in order if c in codes), 0)
    return Unwritable.exit_code if code == UNWRITTEN else code


@contextmanager
def contained(model: str, codes: set[int], *, alone: bool) -> Iterator[None]:
    """Let no model that fails, in whatever way, keep the others from being scanned.

    Args:
        model: Its name.
        codes: Takes the exit status of what went wrong.
        alone: Whether it is the only one: then its name says nothing.
    """
    doing = "" if alone else f"{model}: "
    try:
        yield
    except KeyboardInterrupt:
        raise
    except Unwritable as error:
        say(f"gifthorse: {doing}{error}")
        codes.add(UNWRITTEN)
    except GifthorseError as error:
        say(f"gifthorse: {doing}{error}")
        codes.add(error.exit_code)
    except BaseException as error:
        say(f"gifthorse: {unforeseen(error, '' if alone else model)}")
        codes.add(ERROR)
