"""The small pure parts of the sandboxes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.sandbox import container, entry, etc, names, passed
from agent.sandbox.cgroups import Cgroups
from agent.sandbox.container import Container, Image
from agent.sandbox.firewall import Rules, _filter, _removal
from agent.sandbox.host import Host
from agent.sandbox.limits import asked_for, beyond, granted, share
from agent.sandbox.protocol import Bind, Limits, NotRemovedError, SandboxRequest
from agent.sandbox.view import View, argv
from headrace.pipeline.plan import Network

agents = st.text(min_size=1, max_size=40)
attempts = st.integers(0, 36**8 - 1)


@given(agents, attempts)
def test_a_name_leads_back_to_its_attempt(agent: str, attempt: int) -> None:
    """A sweep after a crash knows nothing but names."""
    interface = names.interface(agent, attempt)
    assert len(interface) <= 15
    assert names.attempt_of_interface(agent, interface) == attempt
    assert names.attempt_of_namespace(agent, names.namespace(agent, attempt)) == attempt


@pytest.mark.parametrize("foreign", ["eth0", "hr", "hrzzzzz1", "docker0", names.interface("other", 5)])
def test_foreign_interfaces_are_nobodys(foreign: str) -> None:
    """A sweep must not touch what it did not make."""
    assert names.attempt_of_interface("mine", foreign) is None


async def test_what_resists_on_the_host_is_told_as_the_sandboxes_promise_it(tmp_path: Path) -> None:
    """On a loaded machine the kernel takes its time, and a job that had passed must not err for that."""
    sandbox = Host(slot=Limits(), environ={}, env={}, cgroups=Cgroups("agent", {"pids": tmp_path}, together=Limits()))
    folder = tmp_path / "headrace" / "agent" / "7"
    folder.mkdir(parents=True)
    (folder / "file").touch()
    with pytest.raises(NotRemovedError):
        await sandbox.remove(7)


def test_a_job_gets_its_wish_up_to_the_slots_share() -> None:
    """The agent's total divided by its slots is all that one job may have."""
    slot = share(8, 64 << 30, 4)
    assert slot == Limits(2.0, 16 << 30, 4096)
    assert granted(Limits(cpu=1, memory=1 << 40), slot) == Limits(1, 16 << 30, 4096)
    assert granted(Limits(), Limits()) == Limits()


def test_what_no_slot_has_is_named_with_both_figures() -> None:
    """A coordinator assigns no such job; one that did would have it run with less than it needs."""
    slot = share(10, 64 << 30, 4)
    assert beyond(asked_for(0, 0, 0), slot) == ""
    assert beyond(asked_for(2.5, 16 << 30, 4096), slot) == ""
    assert beyond(asked_for(3, 32 << 30, 0), slot) == (
        "the job asks for 3 cpu cores where a slot has 2.5, and 34,359,738,368 bytes of memory where a slot has "
        "17,179,869,184: ask for less, or for another pool"
    )
    assert "4,097 processes where a slot has 4,096" in beyond(asked_for(0, 0, 4097), slot)
    assert beyond(asked_for(99, 0, 0), Limits()) == ""


def request(**more: object) -> SandboxRequest:
    fields = {"attempt": 7, "agent": "a1", "slot": 0, "folder": Path("/s/7"), "workspace": Path("/w/7")}
    return SandboxRequest(**{**fields, "network": Network.NONE, **more})  # type: ignore[arg-type]


def test_a_container_is_made_without_what_its_image_says() -> None:
    """Every word of an image's metadata that would act is answered in the body."""
    inspected = {
        "Id": "sha256:1",
        "Config": {
            "Env": ["BASH_ENV=/evil", "PATH=/evil", "A=b=c"],
            "Volumes": {"/data": {}, "/workspace": {}, "/hr/": {}, "data2/": {}, "/": {}},
        },
    }
    image = Image.read(inspected)
    assert image.env == {"BASH_ENV": "/evil", "PATH": "/evil", "A": "b=c"}
    made = container.body(request(), Container(image, Limits(1.5, 1 << 30, 99), "{}", "none", "0:0", None, ""))
    assert made["Env"] == ["A", "BASH_ENV", f"PATH={entry.PATH}"]
    assert [made["Entrypoint"], made["Cmd"]] == [["sh"], ["/hr/control", "/hr"]]
    assert made["Healthcheck"] == {"Test": ["NONE"]}
    host = made["HostConfig"]
    assert sorted(host["Tmpfs"]) == ["/data", "/data2"]
    assert host["CapDrop"] == ["ALL"]
    assert host["CapAdd"] == []
    assert host["Init"] is False
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"], host["PidsLimit"]) == (
        1 << 30,
        1 << 30,
        1500000000,
        99,
    )
    assert {mount["Target"]: mount["ReadOnly"] for mount in host["Mounts"]} == {"/hr": True, "/workspace": False}


def test_an_image_without_any_metadata_is_read() -> None:
    """An imported tarball has none."""
    assert Image.read({"Id": "sha256:2", "Config": None}) == Image("sha256:2", {}, ())


def test_a_trusted_job_has_the_seven_capabilities() -> None:
    """And only those."""
    image = Image("sha256:1", {}, ())
    made = container.body(request(trusted=True), Container(image, Limits(), "{}", "none", "0:0", None, "runsc"))
    assert set(made["HostConfig"]["CapAdd"]) == {
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "SETUID",
        "SETGID",
        "KILL",
    }
    assert made["HostConfig"]["Runtime"] == "runsc"


def test_what_the_view_lists_is_all_there_is() -> None:
    """The host's root is never bound, whatever is asked for."""
    view = View(
        read_only=(Path("/opt/tools"), Path("/usr/share/x")),
        files={"/etc/passwd": Path("/s/7/etc/passwd")},
        binds=(Bind(Path("/w/7"), "/workspace", writable=True),),
    )
    words = argv("bwrap", view, lambda path: f"/mnt{path}", ("sh", "x"))
    binds = [words[i + 1 : i + 3] for i, word in enumerate(words) if word in ("--ro-bind", "--bind")]
    assert ("/", "/") not in binds
    assert ("/mnt/w/7", "/workspace") in binds
    assert ("/mnt/opt/tools", "/opt/tools") in binds
    assert not any(source.startswith("/mnt/usr") for source, _ in binds)
    assert words[-3:] == ("--", "sh", "x")
    for needed in ("--unshare-all", "--disable-userns", "--as-pid-1", "--die-with-parent", "--new-session"):
        assert needed in words
    assert words.index("--remount-ro") > words.index("--dev")
    assert "--share-net" not in words


def test_rules_are_taken_away_as_they_are_listed() -> None:
    """Only those of that attempt: not of attempt 71, not of another agent."""
    mine = '-m comment --comment "headrace:docker:a1:7"'
    made = _filter("HR-hr1", "FORWARD", mine, Rules("hr1", ("10.0.0.53",), "10.222.0.0/30"))
    listed = [line.replace("-I FORWARD 1", "-A FORWARD").replace("-I INPUT 1", "-A INPUT") for line in made]
    others = [
        '-A INPUT -i hr2 -m comment --comment "headrace:docker:a1:71" -j DROP',
        "-A INPUT -i eth0 -j ACCEPT",
        "-N HR-hr1",
    ]
    removal = _removal([*listed, *others], "headrace:docker:a1:7")
    assert removal[-1] == "-X HR-hr1"
    assert len(removal) == len([line for line in listed if line.startswith("-A")]) + 1
    assert not any("71" in line or "eth0" in line for line in removal)


def test_the_first_judged_rule_lets_nothing_of_the_job_into_the_host() -> None:
    """The chain ends in accept only for a veth, and metadata is dropped before."""
    made = _filter("HR-x", "FORWARD", "-m m", Rules("hrx", ("10.0.0.53",), "10.222.0.0/30"))
    chain = [line for line in made if line.startswith("-A HR-x")]
    assert chain[-1].endswith("-j ACCEPT")
    assert "169.254.0.0/16" in chain[2]
    assert all("--dport 53" in line for line in chain[:2])
    assert any(line.startswith("-I INPUT 1 -i hrx") and line.endswith("-j DROP") for line in made)


TOGETHER = Limits(memory=3 << 20, pids=21)
V1 = """\
tmpfs {0} tmpfs rw 0 0
cgroup {0}/memory cgroup rw,relatime,memory 0 0
cgroup {0}/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
cgroup {0}/pids cgroup rw,relatime,pids 0 0
"""


def test_version_1_has_a_folder_for_each_controller(tmp_path: Path) -> None:
    """Limits are written in each tree under the agent's id."""
    for folder in ("memory", "cpu,cpuacct", "pids"):
        (tmp_path / folder).mkdir()
    found = Cgroups.find("a1", V1.format(tmp_path), TOGETHER)
    assert found is not None
    folders = found.make(7, Limits(cpu=0.5, memory=1 << 20, pids=9))
    assert {folder.relative_to(tmp_path).parts[0] for folder in folders} == {"memory", "cpu,cpuacct", "pids"}
    agents_folder = "headrace/a1/7"
    assert (tmp_path / "memory" / agents_folder / "memory.limit_in_bytes").read_text() == str(1 << 20)
    assert (tmp_path / "cpu,cpuacct" / agents_folder / "cpu.cfs_quota_us").read_text() == "50000"
    assert (tmp_path / "pids" / agents_folder / "pids.max").read_text() == "9"
    assert found.attempts() == {7}


def test_version_2_hands_the_controllers_down(tmp_path: Path) -> None:
    """Children get limits only where each folder above has passed the controllers on."""
    for folder in (tmp_path, tmp_path / "headrace", tmp_path / "headrace" / "a1"):
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    found = Cgroups.find("a1", f"cgroup2 {tmp_path} cgroup2 rw 0 0\n", TOGETHER)
    assert found is not None
    (folder,) = found.make(7, Limits(cpu=2, memory=1 << 20, pids=9))
    assert folder == tmp_path / "headrace" / "a1" / "7"
    assert (folder / "memory.max").read_text() == str(1 << 20)
    assert (tmp_path / "headrace" / "cgroup.subtree_control").read_text() == "+pids"


def test_without_its_controllers_there_is_no_cgroup(tmp_path: Path) -> None:
    """An agent must not advertise limits that nobody enforces."""
    (tmp_path / "cgroup.controllers").write_text("cpuset\n")
    assert Cgroups.find("a1", f"cgroup2 {tmp_path} cgroup2 rw 0 0\n", TOGETHER) is None
    assert Cgroups.find("a1", "tmpfs / tmpfs rw 0 0\n", TOGETHER) is None


def test_the_made_etc_names_nobody_of_the_host(tmp_path: Path) -> None:
    """A job needs a user of its own name, resolvers with a network, none without."""
    made = etc.write(tmp_path / "etc", Network.FULL, ("10.0.0.53",))
    assert made["/etc/resolv.conf"].read_text() == "nameserver 10.0.0.53\n"
    assert [line.split(":")[0] for line in made["/etc/passwd"].read_text().splitlines()] == ["root", "job", "nobody"]
    assert etc.write(tmp_path / "etc", Network.NONE, ("10.0.0.53",))["/etc/resolv.conf"].read_text() == ""
    assert etc.resolvers("# x\nnameserver 1.1.1.1\nsearch a\nnameserver\n nameserver ::1\n") == ("1.1.1.1", "::1")


def test_a_resolver_on_loopback_is_no_use_in_another_namespace() -> None:
    """There the job's own loopback answers, that is nobody."""
    local, upstream = "nameserver 127.0.0.53\n", "nameserver 10.0.0.53\n"
    assert etc.reachable_resolvers(local, upstream) == ("10.0.0.53",)
    assert etc.reachable_resolvers("nameserver 10.1.1.1\n", upstream) == ("10.1.1.1",)
    assert etc.reachable_resolvers(local, "") == ()


def test_only_the_documented_settings_are_passed_on(tmp_path: Path) -> None:
    """A token or a cloud key of the user's environment is no setting of a package index."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    given = {
        "https_proxy": "http://proxy:3128",
        "HTTPS_PROXY": "http://proxy:3128",
        "PIP_FIND_LINKS": f"{wheels} https://wheels.example.com /missing/place",
        "SSL_CERT_FILE": "/",
        "UV_CACHE_DIR": str(tmp_path),
    }
    others = {"AWS_SECRET_ACCESS_KEY": "x", "HEADRACE_TOKEN": "x", "MY_PIP_INDEX_URL": "x"}
    assert passed.settings({**given, **others}) == given
    assert passed.paths(given, home=tmp_path / "home") == (wheels,)


@pytest.mark.parametrize("agent", ["", "../other", "a b", 'a" -j ACCEPT', "a\n*nat", "-x"])
def test_an_agents_id_cannot_become_a_path_or_a_rule(agent: str) -> None:
    """It stands in folder names and in firewall rules."""
    with pytest.raises(ValueError, match="an agent's id"):
        names.checked(agent)
