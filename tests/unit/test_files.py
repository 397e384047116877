"""Files that others read, and the notes that cleanup lives on."""

import errno
import os
from types import SimpleNamespace

import msgspec
import pytest

from tweed.agent import files
from tweed.agent.files import Noted, Notes, previous_subnet, spare, write_atomic, write_swapping
from tweed.errors import KernelError


def test_a_text_replaces_another_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "subnet.env"
    write_atomic(path, "one")
    write_atomic(path, "two", 0o600)
    assert path.read_text() == "two" and path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == ["subnet.env"]


def test_a_link_is_replaced_and_what_it_points_to_is_not(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "link").symlink_to("theirs")
    write_atomic(tmp_path / "link", "ours")
    assert ((tmp_path / "link").read_text(), (tmp_path / "theirs").read_text()) == ("ours", "theirs")


@pytest.mark.parametrize("kind", ["fifo", "directory", "link to a fifo", "root"])
def test_what_is_no_file_is_never_replaced(tmp_path, kind):
    """A rename would: `--subnet-file /dev/null` would cost the machine its /dev/null."""
    path = {"root": tmp_path.parents[-1]}.get(kind, tmp_path / "there")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "link to a fifo":
        os.mkfifo(tmp_path / "fifo")
        path.symlink_to("fifo")
    before = os.lstat(path)
    with pytest.raises(OSError, match="it exists and is no file") as caught:
        write_atomic(path, "text")
    assert caught.value.errno == errno.EEXIST and os.lstat(path)[:4] == before[:4]
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "a file system without"])
def test_two_files_change_names_each_time(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(files, "libc", SimpleNamespace(renameat2=lambda *_: -1))
    path = tmp_path / "ledger"
    for text in ("first", "a longer second", "3", ""):
        write_swapping(path, text.encode())
        assert path.read_text() == text and path.stat().st_mode & 0o777 == 0o600
        assert set(os.listdir(tmp_path)) <= {path.name, spare(path).name}


def test_a_write_that_was_cut_short_is_not_seen(tmp_path):
    path = tmp_path / "ledger"
    write_swapping(path, b"old")
    spare(path).write_text("half of something lon")
    assert path.read_text() == "old"
    write_swapping(path, b"new")
    assert path.read_text() == "new" and spare(path).read_text() == "old"


def test_a_directory_that_was_removed_is_made_again(tmp_path):
    path = tmp_path / "state" / "ledger"
    write_swapping(path, b"text")
    assert path.read_text() == "text" and path.parent.stat().st_mode & 0o777 == 0o700


def test_the_spare_is_not_followed_to_elsewhere(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    spare(tmp_path / "ledger").symlink_to("theirs")
    with pytest.raises(OSError, match="symbolic links"):
        write_swapping(tmp_path / "ledger", b"ours")
    assert (tmp_path / "theirs").read_text() == "theirs" and not (tmp_path / "ledger").exists()


def test_notes_are_read_back(tmp_path):
    notes = Notes(tmp_path / "notes.json")
    notes.add("devices", ["flannel.1"])
    notes.add("devices", ["flannel.1", "flannel-v6.1"])
    notes.set_networks(["10.244.0.0/16"])
    notes.add_sysctls([("net.ipv4.ip_forward", "0")])
    notes.add_sysctls([("net.ipv4.ip_forward", "1"), ("other", "2")])  # the first one stands
    notes.set_nft_vnis([1])
    again = Notes(tmp_path / "notes.json").noted
    assert again == notes.noted
    assert again.devices == ["flannel.1", "flannel-v6.1"] and again.sysctls == [("net.ipv4.ip_forward", "0"), ("other", "2")]
    notes.forget_device("flannel.1")
    assert Notes(tmp_path / "notes.json").noted.devices == ["flannel-v6.1"]


def test_what_cannot_be_noted_is_not_believed_to_be(tmp_path):
    """A full disk: the deed that follows a note must not happen without it, at this try and at the next."""
    notes = Notes(tmp_path / "there" / "notes.json")
    (tmp_path / "there").write_text("a file where the directory should be")
    for _ in range(2):
        with pytest.raises(KernelError, match=r"write .*/notes\.json: "):
            notes.add("devices", ["flannel.1"])
    assert notes.noted == Noted()
    (tmp_path / "there").unlink()
    notes.add("devices", ["flannel.1"])
    assert notes.noted.devices == ["flannel.1"]


def test_nothing_is_written_when_nothing_is_new(tmp_path):
    notes = Notes(tmp_path / "notes.json")
    notes.set_nft_vnis([])
    assert not notes.path.exists()
    notes.add("files", ["a"])
    before = notes.path.stat().st_ino
    notes.add("files", ["a"])
    assert notes.path.stat().st_ino == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"devices": 17}', "\x00"])
def test_broken_notes_are_no_end(tmp_path, text):
    (tmp_path / "notes.json").write_text(text)
    assert Notes(tmp_path / "notes.json").noted == Noted()
    assert msgspec.json.decode(msgspec.json.encode(Noted()), type=Noted) == Noted()


def test_no_previous_subnet_where_there_is_no_file(tmp_path):
    assert previous_subnet(tmp_path / "absent").subnets == ()
    assert previous_subnet(tmp_path).subnets == ()
