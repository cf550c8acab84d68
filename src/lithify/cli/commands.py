"""The commands and their options. Each parses, calls the API function of its name, and prints the result."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import lithify as api

if TYPE_CHECKING:
    from lithify.read.settings import Settings

_Function = TypeVar("_Function", bound=Callable[..., Any])
_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)


@dataclass
class Options:
    """What may be asked of every command."""

    store: Path | None = None
    jobs: int | None = None
    quiet: bool = False
    verbose: bool = False
    debug: bool = False

    def settings(self, *, offline: bool = False) -> Settings:
        """This machine's settings, with what the command line says on top."""
        from lithify.read.settings import read_settings

        return read_settings(store=self.store, jobs=self.jobs, offline=True if offline else None)


def _keep(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Note an option that every command has, wherever on the line it stands."""
    if value is not None and value is not False:
        setattr(ctx.find_root().obj, str(parameter.name), value)


def _common(function: _Function) -> _Function:
    """The options of every command, before or after its name."""
    kept = functools.partial(click.option, expose_value=False, callback=_keep)
    for option in (
        kept("--debug", is_flag=True, help="Show every step, and the traceback of an error."),
        kept("-v", "--verbose", is_flag=True, help="Show every step."),
        kept("-q", "--quiet", is_flag=True, help="Show results and errors only."),
        kept("-j", "--jobs", type=int, metavar="N", help="Do N things at a time (default: one a core)."),
        kept("--store", type=_FOLDER, metavar="FOLDER", help="Keep images and caches in FOLDER."),
    ):
        function = option(function)
    return function


def _as_json(function: _Function) -> _Function:
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(function)


def _family(function: _Function) -> _Function:
    return click.option(
        "--family", type=_FOLDER, default=Path(), metavar="FOLDER", help="The family's folder, or one within it."
    )(function)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(api.__version__, message="%(prog)s %(version)s")
@_common
def lithify() -> None:
    """From a folder of requirement files to a locked, reproducible image for Jupyter.

    Start with `lithify init`, `lithify lock`, `lithify build` and `lithify run`.
    """


@lithify.command()
@click.argument("folder", type=_FOLDER, required=False)
@click.option("--name", metavar="NAME", help="The family's name (default: the folder's).")
@click.option(
    "--from", "from_", type=_FOLDER, metavar="REPOSITORY", help="Take over the images of REPOSITORY as they are."
)
@click.option("--conda", is_flag=True, help="A family of conda environments.")
@_common
@click.pass_obj
def init(options: Options, folder: Path | None, name: str | None, from_: Path | None, conda: bool) -> None:
    """Make a small commented family in FOLDER.

    With --from, a family of the images that REPOSITORY has, where it is like Pangeo's or one for repo2docker. Only
    lithify.toml is written, into REPOSITORY where no FOLDER is named.
    """
    from lithify.cli import display

    with display.progress(options) as report:
        written = api.init(folder, name=name, conda=conda, from_=from_, report=report)
    click.echo(written)
    if not options.quiet:
        display.tell("look at what is in it; then `lithify lock`, `lithify build` and `lithify run`", "hint")


@lithify.command()
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@_family
@click.option("--upgrade", is_flag=True, help="Take the newest version of everything.")
@click.option(
    "-P", "--upgrade-package", "packages", multiple=True, metavar="NAME", help="Take the newest NAME; may be repeated."
)
@click.option(
    "--exclude-newer", metavar="DATE", help="Leave out what was published after DATE (a day's end is in UTC)."
)
@click.option(
    "--import", "import_file", type=_FILE, metavar="FILE", help="Take over another tool's lock for one IMAGE."
)
@click.option("--export", "form", metavar="FORMAT", help="Print the lock of one IMAGE in another tool's format.")
@click.option("-o", "--output", type=_FILE, metavar="FILE", help="Write what --export prints into FILE.")
@click.option("--platform", metavar="OS/ARCH", help="Whose packages --export lists, for formats of one platform.")
@click.option("--check", is_flag=True, help="Change nothing; fail where a lock does not answer its requirement files.")
@click.option("--offline", is_flag=True, help="Use the cache alone, not the network.")
@_as_json
@_common
@click.pass_obj
def lock(
    options: Options,
    images: tuple[str, ...],
    family: Path,
    upgrade: bool,
    packages: tuple[str, ...],
    exclude_newer: str | None,
    import_file: Path | None,
    form: str | None,
    output: Path | None,
    platform: str | None,
    check: bool,
    offline: bool,
    as_json: bool,
) -> None:
    """Lock the requirements of images.

    Writes lithify.lock beside the requirement files, for every platform of the family. Without IMAGE, for all images
    of the family. A lock that answers its requirement files stays as it is, and what is locked stays where the
    requirements allow it. DATE is such as 2026-01-31 or 2026-01-31T12:00:00Z. FORMAT is conda-lock, explicit, pixi,
    pylock, requirements or packages.
    """
    from lithify.cli import display, results

    if form is None and (output or platform):
        raise click.UsageError("'--output' and '--platform' go with '--export'.")
    if form is not None:
        if len(images) > 1 or upgrade or packages or exclude_newer or import_file or check:
            raise click.UsageError("'--export' shows the lock of one image as it is.")
        written = api.export_lock(
            family,
            images[0] if images else None,
            form,
            platform=platform,
            name=output.name if output else "conda-lock.yml",
            settings=options.settings(offline=offline),
        )
        if output is None:
            click.echo(written, nl=False)
        else:
            output.write_text(written, encoding="utf-8")
        return
    with display.progress(options) as report:
        locked = api.lock(
            family,
            images,
            upgrade=upgrade,
            upgrade_packages=packages,
            exclude_newer=exclude_newer,
            import_file=import_file,
            check=check,
            settings=options.settings(offline=offline),
            report=report,
        )
    results.show(locked, results.lock_lines, as_json=as_json)


@lithify.command()
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@_family
@click.option("--platform", "platforms", multiple=True, metavar="OS/ARCH", help="Build for it only; may be repeated.")
@click.option(
    "--compression",
    type=click.Choice(["zstd", "gzip"]),
    default="zstd",
    show_default=True,
    help="Of the layers; gzip is for Docker before 23.",
)
@click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Add a label to the images; may be repeated."
)
@click.option("--locked", is_flag=True, help="Fail where a lock does not answer its requirement files.")
@click.option("--offline", is_flag=True, help="Use the cache alone, not the network.")
@_as_json
@_common
@click.pass_obj
def build(
    options: Options,
    images: tuple[str, ...],
    family: Path,
    platforms: tuple[str, ...],
    compression: str,
    labels: tuple[str, ...],
    locked: bool,
    offline: bool,
    as_json: bool,
) -> None:
    """Build locked images into the store.

    Without IMAGE, all images of the family. An image can be built without its parents: their layers are its first.
    """
    from lithify.cli import display, results

    with display.progress(options) as report:
        built = api.build(
            family,
            images,
            platforms=platforms,
            compression=compression,
            locked=locked,
            labels=_labels(labels),
            settings=options.settings(offline=offline),
            report=report,
        )
    results.show(built, results.build_lines, as_json=as_json)


@lithify.command(context_settings={"ignore_unknown_options": False})
@click.argument("image")
@click.argument("command", nargs=-1, metavar="[-- COMMAND...]")
@click.option(
    "-p", "--port", type=click.IntRange(1, 65535), metavar="N", help="JupyterLab's port (default: a free one)."
)
@click.option(
    "--volume", "volumes", multiple=True, metavar="FOLDER:INSIDE[:ro]", help="Show FOLDER inside; may be repeated."
)
@click.option(
    "-e", "--env", "variables", multiple=True, metavar="NAME[=VALUE]", help="Set NAME inside; may be repeated."
)
@click.option("-u", "--user", metavar="USER", help="Run as USER, a name or number (default: the image's).")
@_common
@click.pass_obj
def run(
    options: Options,
    image: str,
    command: tuple[str, ...],
    port: int | None,
    volumes: tuple[str, ...],
    variables: tuple[str, ...],
    user: str | None,
) -> int:
    """Run an image, or a command in it.

    COMMAND runs in the sandbox, and its exit code is that of lithify. Without COMMAND it is JupyterLab on a loopback
    port, whose address is printed.
    """
    from lithify.cli import display

    with display.progress(options) as report:
        return api.run(
            image,
            command,
            port=port,
            volumes=volumes,
            environment=_environment(variables),
            user=user,
            settings=options.settings(),
            report=report,
        )


def _labels(texts: Sequence[str]) -> dict[str, str]:
    labels = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"'{text}' is not KEY=VALUE.", param_hint="'--label'")
        labels[key] = value
    return labels


def _environment(variables: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` as it says; ``NAME`` alone with the value that it has here."""
    environment = {}
    for variable in variables:
        name, equals, value = variable.partition("=")
        if not name:
            raise click.BadParameter(f"'{variable}' names no variable.", param_hint="'--env'")
        if equals:
            environment[name] = value
        elif name in os.environ:
            environment[name] = os.environ[name]
    return environment


@lithify.command("list")
@_as_json
@_common
@click.pass_obj
def list_images(options: Options, as_json: bool) -> None:
    """List the images in the store."""
    from lithify.cli import results

    results.show(api.list_images(settings=options.settings()), results.list_lines, as_json=as_json)


@lithify.command()
@click.argument("image")
@click.option("--platform", metavar="OS/ARCH", help="Of which platform (default: this machine's, else the first).")
@_as_json
@_common
@click.pass_obj
def inspect(options: Options, image: str, platform: str | None, as_json: bool) -> None:
    """Show an image's configuration, layers and packages."""
    from lithify.cli import results

    details = api.inspect(image, platform=platform, settings=options.settings())
    results.show(details, results.inspect_lines, as_json=as_json)


@lithify.command()
@click.argument("image")
@click.option("--oci-layout", type=_FOLDER, metavar="FOLDER", help="As an OCI image layout, added to what is there.")
@click.option("--oci-archive", type=_FILE, metavar="FILE", help="As an OCI image layout in a tar file.")
@click.option("--docker-archive", type=_FILE, metavar="FILE", help="As a tar file for `docker load`.")
@click.option("--rootfs", type=_FOLDER, metavar="FOLDER", help="As a root file system, unpacked.")
@click.option("--podman", is_flag=True, help="Into podman on this machine.")
@click.option("--docker", is_flag=True, help="Into Docker on this machine.")
@click.option("--platform", metavar="OS/ARCH", help="Of it only (default: all, or this machine's where only one goes).")
@_common
@click.pass_obj
def export(
    options: Options,
    image: str,
    oci_layout: Path | None,
    oci_archive: Path | None,
    docker_archive: Path | None,
    rootfs: Path | None,
    podman: bool,
    docker: bool,
    platform: str | None,
) -> None:
    """Write an image for other tools.

    In one form or several.
    """
    from lithify.cli import display

    with display.progress(options) as report:
        api.export(
            image,
            oci_layout=oci_layout,
            oci_archive=oci_archive,
            docker_archive=docker_archive,
            rootfs=rootfs,
            podman=podman,
            docker=docker,
            platform=platform,
            settings=options.settings(),
            report=report,
        )
