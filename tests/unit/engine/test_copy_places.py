"""Where ``cp`` puts things (pure), and who a user is by the files of any root."""

from __future__ import annotations

import pytest

from vmm.cli.copy import Place as Argument
from vmm.cli.copy import place
from vmm.engine.copying import Landing, Place, landing
from vmm.engine.updating import changed
from vmm.engine.users import resolve_user
from vmm.model.errors import Conflict, LaunchError, UsageError, VmmError
from vmm.model.request import UpdateRequest
from vmm.model.spec import Resources, Restart, WorkloadSpec


@pytest.mark.parametrize(
    ("text", "container", "path"),
    [
        ("web:/etc/x", "web", "/etc/x"),
        ("web:rel", "web", "rel"),
        ("web:/a:b", "web", "/a:b"),
        ("web:", "web", ""),
        ("-", "", "-"),
        ("file", "", "file"),
        ("./web:file", "", "./web:file"),
        ("/web:file", "", "/web:file"),
        ("dir/web:file", "", "dir/web:file"),
        (":x", "", ":x"),
    ],
)
def test_which_side_an_argument_names(text: str, container: str, path: str) -> None:
    assert place(text) == Argument(container, path)


@pytest.mark.parametrize(
    ("text", "path", "name"),
    [
        ("/a/b", "/a/b", "b"), ("a/b", "/a/b", "b"), ("/a/b/", "/a/b", "b"),
        ("/a/b/.", "/a/b", "."),
        ("/", "/", "."), ("", "/", "."), (".", "/", "."), ("/../../etc", "/etc", "etc"),
        ("//a", "/a", "a"), ("/a/..", "/", "."), ("/a\nb", "/a\nb", "a\nb"),
    ],
)  # fmt: skip
def test_paths_in_a_workload_begin_at_its_root(text: str, path: str, name: str) -> None:
    found = Place.inside(text)
    assert (found.path, found.name) == (path, name)


@pytest.mark.parametrize(
    ("source", "kind", "target", "there", "expected"),
    [
        ("/s/f", "f", "/d", "d", Landing("/d", "f")),
        ("/s/f", "f", "/d/", "d", Landing("/d", "f")),
        ("/s/f", "f", "/d/x", "f", Landing("/d", "x")),
        ("/s/f", "f", "/d/x", "", Landing("/d", "x")),
        ("/s", "d", "/d", "d", Landing("/d", "s")),
        ("/s/", "d", "/d", "d", Landing("/d", "s")),
        ("/s/.", "d", "/d", "d", Landing("/d", ".")),
        ("/s", "d", "/d/x", "", Landing("/d", "x")),
        ("/s/.", "d", "/d/x/", "", Landing("/d", "x")),
        ("/", "d", "/d", "d", Landing("/d", ".")),
        ("/s/l", "l", "/d", "d", Landing("/d", "l")),
        ("/s/f/", "f", "/d", "d", "not a directory"),
        ("/s/f/.", "f", "/d", "d", "not a directory"),
        ("/s", "d", "/d/x", "f", "cannot copy directory"),
        ("/s/f", "f", "/d/x/", "f", "not a directory"),
        ("/s/f", "f", "/d/x/", "", "no such directory"),
    ],
)
def test_landing(source: str, kind: str, target: str, there: str, expected: Landing | str) -> None:
    places = Place.inside(source), Place.inside(target)
    if isinstance(expected, Landing):
        assert landing(places[0], kind, places[1], there) == expected
        return
    with pytest.raises(VmmError, match=expected):
        landing(places[0], kind, places[1], there)


FILES = {
    "etc/passwd": "root:x:0:0::/root:/bin/sh\nweb:x:33:44::/srv:/bin/sh\nbad:x:-1:x::/:/\nshort\n",
    "etc/group": "root:x:0:\nweb:x:44:\nextra:x:50:web,other\nevil:x:9999999999999:web\n",
}


def read(path: str) -> str:
    return FILES.get(path, "")


@pytest.mark.parametrize(
    ("text", "uid", "gid", "groups", "home"),
    [
        ("", 0, 0, (), "/root"), ("web", 33, 44, (50,), "/srv"), ("33", 33, 44, (50,), "/srv"),
        ("web:extra", 33, 50, (), "/srv"), ("77:88", 77, 88, (), "/"),
    ],
)  # fmt: skip
def test_users(text: str, uid: int, gid: int, groups: tuple[int, ...], home: str) -> None:
    user = resolve_user(read, text)
    assert (user.uid, user.gid, user.groups, user.home) == (uid, gid, groups, home)


@pytest.mark.parametrize("text", ["bad", "nobody", "web:nogroup", "99999999999"])
def test_unknown_users_are_refused(text: str) -> None:
    with pytest.raises(LaunchError):
        resolve_user(read, text)


def spec(resources: Resources | None = None, auto_remove: bool = False) -> WorkloadSpec:
    return WorkloadSpec(
        id="ab" * 32, name="c", backend="container", image="i", image_id="", created=1,
        resources=resources or Resources(), auto_remove=auto_remove,
    )  # fmt: skip


def test_an_update_changes_what_it_names() -> None:
    request = UpdateRequest(memory=1 << 27, pids_limit=-1, restart=Restart(policy="always"))
    after = changed(spec(Resources(memory=1 << 26, nano_cpus=10**9)), request)
    assert (after.resources.memory, after.resources.nano_cpus) == (1 << 27, 10**9)
    assert (after.resources.pids_limit, after.restart.policy) == (-1, "always")
    assert changed(after, UpdateRequest()) == after


def test_updates_that_contradict_what_stays() -> None:
    with pytest.raises(UsageError, match="already set memoryswap"):
        changed(spec(Resources(memory=1 << 26, memory_swap=1 << 27)), UpdateRequest(memory=1 << 28))
    with pytest.raises(UsageError, match="Memoryswap limit"):
        changed(spec(), UpdateRequest(memory_swap=-1))
    with pytest.raises(Conflict, match="AutoRemove"):
        changed(spec(auto_remove=True), UpdateRequest(restart=Restart(policy="always")))
