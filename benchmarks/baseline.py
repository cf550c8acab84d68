"""The other side: the same image by buildah, with what its users would give it.

A Containerfile on the same base image, the same locked Debian packages by dpkg, the same locked wheels by uv from uv's
own cache (mounted in, warm), with ``--compile-bytecode``. ``--isolation chroot`` is its quickest mode, and works
everywhere.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import Measured, measured
from uv import find_uv_bin

from lithify import runtime
from lithify.lockfile import Package
from lithify.platforms import Platform

BASE = "localhost/base"

_CONTAINERFILE = """\
FROM {base}
USER root
{debian}COPY requirements.txt /tmp/requirements.txt
USER {uid}
RUN {variables} UV_CACHE_DIR=/uv-cache /uv/uv pip install --python {prefix}/bin/python --offline --no-deps \
--require-hashes --compile-bytecode --link-mode copy --quiet -r /tmp/requirements.txt
"""


@dataclass(frozen=True)
class Buildah:
    """Its storage, uv's cache and the build's context, all below ``work``."""

    work: Path

    @property
    def program(self) -> list[str | Path]:
        """buildah with storage of its own."""
        return ["buildah", "--root", self.work / "storage", "--runroot", self.work / "run"]

    @property
    def cache(self) -> Path:
        """uv's cache."""
        return self.work / "uv-cache"

    def take_base(self, layout: Path) -> None:
        """Take the base image from an OCI layout that holds nothing else, unpacked as buildah needs it."""
        transport = f"containers-storage:[overlay@{self.work / 'storage'}+{self.work / 'run'}]{BASE}"
        subprocess.run(["skopeo", "copy", "-q", f"oci:{layout}", transport], check=True)

    def warm(self, wheels: Sequence[Package], python: str, platform: Platform) -> None:
        """Fill uv's cache with the wheels, downloaded and unpacked."""
        requirements = self.work / "warm.txt"
        requirements.write_text(_hashed(wheels))
        command = [find_uv_bin(), "pip", "install", "-q", "--no-deps", "--require-hashes", "--python-version", python]
        command += ["--python-platform", platform.uv, "--target", str(self.work / "warm"), "-r", str(requirements)]
        subprocess.run(command, check=True, env={**os.environ, "UV_CACHE_DIR": str(self.cache)})
        # The environment belongs to uid 1000, and so does the process that fills it.
        subprocess.run(["chown", "-R", f"{runtime.JOVYAN.uid}:{runtime.JOVYAN.gid}", self.cache], check=True)

    def build(
        self, wheels: Sequence[Package], debs: Sequence[tuple[Package, Path]], *, cached: bool, tag: str = "image"
    ) -> Measured:
        """Build the image; with ``cached`` a step that is as it was last time is not run again."""
        context = self.work / "context"
        context.mkdir(exist_ok=True)
        (context / "requirements.txt").write_text(_hashed(wheels))
        (context / "Containerfile").write_text(
            _CONTAINERFILE.format(
                base=BASE,
                debian="RUN dpkg --install /debs/*.deb\n" if debs else "",
                uid=runtime.JOVYAN.uid,
                prefix=runtime.PREFIX,
                variables=" ".join(f"{k}='{v}'" for k, v in sorted(os.environ.items()) if k.startswith("UV_")),
            )
        )
        pool = self.work / "debs"
        pool.mkdir(exist_ok=True)
        for package, path in debs:
            place = pool / Path(package.file).name
            if not place.exists():
                shutil.copyfile(path, place)
        volumes = {Path(find_uv_bin()).resolve().parent: "/uv:ro", self.cache: "/uv-cache:rw", pool: "/debs:ro"}
        configuration = Path.home() / ".config" / "uv"
        if configuration.is_dir():
            volumes[configuration] = "/etc/uv:ro"
        command = [*self.program, "bud", "-q", "--isolation", "chroot", "--tag", f"localhost/{tag}"]
        command += ["--layers"] if cached else ["--layers", "--no-cache"]
        for source, target in volumes.items():
            command += ["--volume", f"{source}:{target}"]
        return measured([*command, context])

    def push(self, layout: Path, tag: str = "image") -> Measured:
        """Compress the image into an OCI layout, as a push to a registry would."""
        compressed = ["--compression-format", "zstd"]
        return measured([*self.program, "push", "-q", *compressed, f"localhost/{tag}", f"oci:{layout}"])

    def inside(self, *command: str, tag: str = "image") -> str:
        """What a command in the image prints."""
        made = subprocess.run(
            [*self.program, "from", f"localhost/{tag}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        done = subprocess.run(
            [*self.program, "run", "--isolation", "chroot", made, "--", *command],
            check=True,
            capture_output=True,
            text=True,
        )
        subprocess.run([*self.program, "rm", made], check=True, capture_output=True)
        return done.stdout.strip()


def _hashed(wheels: Sequence[Package]) -> str:
    return "".join(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n" for wheel in sorted(wheels))
