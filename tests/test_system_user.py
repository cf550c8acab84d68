"""The user's layer: accounts, whatever the base has already."""

from __future__ import annotations

import io
import tarfile

import pytest

import images
from lithify.assemble.system import user_layer, with_user
from lithify.store import oci
from lithify.store.compression import ZSTD, compress
from lithify.store.store import Store

PASSWD = "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n"
GROUP = "root:x:0:\ndaemon:x:1:\n"
SHADOW = "root:*:3653:0:99999:7:::\ndaemon:*:3653:0:99999:7:::\n"
OURS = "jovyan:x:1000:1000::/home/jovyan:/bin/bash"


def accounts(**files: str) -> dict[str, str]:
    found = {"etc/passwd": PASSWD, "etc/group": GROUP, "etc/shadow": SHADOW}
    return found | {f"etc/{name}": text for name, text in files.items()}


def test_the_user_is_added_after_the_others() -> None:
    files = with_user(accounts())
    assert files["etc/passwd"] == PASSWD + OURS + "\n"
    assert files["etc/group"] == GROUP + "jovyan:x:1000:\n"
    assert files["etc/shadow"] == SHADOW + "jovyan:!:3653:0:99999:7:::\n"
    assert set(files) == {"etc/passwd", "etc/group", "etc/shadow"}


def test_doing_it_twice_changes_nothing() -> None:
    once = with_user(accounts(gshadow="root:*::\n"))
    assert with_user(once) == once


def test_another_user_of_that_number_makes_room_everywhere() -> None:
    files = with_user(
        accounts(
            passwd=PASSWD + "ubuntu:x:1000:1000:Ubuntu:/home/ubuntu:/bin/bash\n",
            group=GROUP + "adm:x:4:syslog,ubuntu\nubuntu:x:1000:\nsudo:x:27:ubuntu\n",
            shadow=SHADOW + "ubuntu:!:19000:0:99999:7:::\n",
            gshadow="root:*::\nubuntu:!::\nsudo:*::ubuntu\n",
        )
    )
    assert "ubuntu" not in "".join(files.values())
    assert files["etc/passwd"].splitlines()[-1] == OURS
    assert "adm:x:4:syslog" in files["etc/group"].splitlines()
    assert files["etc/gshadow"] == "root:*::\nsudo:*::\njovyan:!::\n"


def test_a_user_of_that_name_gets_our_number() -> None:
    files = with_user(
        accounts(passwd=PASSWD + "jovyan:x:1234:100:old:/home/old:/bin/sh\n", group=GROUP + "users:x:100:\n")
    )
    assert files["etc/passwd"].splitlines()[2:] == [OURS]
    assert "users:x:100:" in files["etc/group"].splitlines()


def test_a_base_without_accounts_gets_root_and_ours() -> None:
    files = with_user({})
    assert files["etc/passwd"] == "root:x:0:0:root:/root:/bin/bash\n" + OURS + "\n"
    assert files["etc/group"] == "root:x:0:\njovyan:x:1000:\n"


@pytest.mark.parametrize("line", ["", "nonsense", "::::", "\udcff:x:1:1:::"])
def test_odd_lines_do_no_harm(line: str) -> None:
    files = with_user(accounts(passwd=f"{PASSWD}{line}\n", group=f"{GROUP}{line}\n"))
    assert files["etc/passwd"].splitlines()[-1] == OURS


def test_the_layer_has_the_home_with_its_first_files_and_srv(store: Store) -> None:
    members = [
        images.folder("etc"),
        images.file("etc/passwd", PASSWD),
        images.file("etc/group", GROUP),
        images.file("etc/shadow", SHADOW, mode=0o640),
        images.file("etc/skel/.bashrc", "# a shell\n"),
    ]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member, data in members:
            archive.addfile(member, io.BytesIO(data))
    descriptor = store.write_blob([compress(buffer.getvalue(), ZSTD)], ZSTD.media_type)
    below = oci.Layer(descriptor, oci.digest_of(buffer.getvalue()))
    with tarfile.open(fileobj=io.BytesIO(b"".join(user_layer(store, [below])))) as made:
        found = {member.name: member for member in made}
    assert list(found) == [
        *("etc", "etc/group", "etc/passwd", "etc/shadow", "home", "home/jovyan", "home/jovyan/.bashrc", "srv"),
    ]
    assert {(found[n].uid, found[n].gid) for n in ("home/jovyan", "home/jovyan/.bashrc", "srv")} == {(1000, 1000)}
    assert (found["etc/shadow"].mode, found["etc/shadow"].gid, found["home"].uid) == (0o640, 42, 0)
