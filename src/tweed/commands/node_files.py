"""`tweed node-files`: keep systemd-networkd, udev and NetworkManager away from tweed's devices."""

from __future__ import annotations

from pathlib import Path

import click

from tweed.agent.files import write_atomic
from tweed.errors import TweedError, UsageError

# systemd 242 and later give every virtual device a MAC of their own choice (MACAddressPolicy=persistent, 99-default.link),
# which flushes the VTEP's neighbours; networkd and NetworkManager drop addresses that they did not configure.
FILES = {
    "etc/systemd/network/10-tweed.link": (
        "[Match]\nOriginalName=flannel.* flannel-v6.* cni0\n\n[Link]\nMACAddressPolicy=none\n",
        "udev leaves the MAC addresses alone",
    ),
    "etc/systemd/network/10-tweed.network": (
        "[Match]\nName=flannel.* flannel-v6.* cni0\n\n[Link]\nUnmanaged=yes\n",
        "systemd-networkd leaves addresses and routes alone",
    ),
    "etc/NetworkManager/conf.d/10-tweed.conf": (
        "[keyfile]\nunmanaged-devices+=interface-name:flannel.*;interface-name:flannel-v6.*;interface-name:cni0\n",
        "NetworkManager leaves the devices alone",
    ),
}


@click.command()
@click.option("--write", is_flag=True, help="Write them; without, they are only shown.")
@click.option("--remove", is_flag=True, help="Remove the ones that tweed wrote.")
@click.option("--root", type=click.Path(path_type=Path), default=Path("/"), show_default=True, help="The file system to write to.")
def node_files(write: bool, remove: bool, root: Path) -> None:
    """Files that keep udev, systemd-networkd and NetworkManager away from flannel.* and cni0."""
    if write and remove:
        raise UsageError("--write and --remove: give one of them")
    changed = False
    for name, (text, why) in FILES.items():
        path = root / name
        try:
            there = path.read_text() if path.exists() else None
            if not (write or remove):
                click.echo(f"# {path}: {why}\n{text}")
            elif there not in (None, text):
                click.echo(f"left alone {path}: it is not as tweed writes it", err=True)
            elif write and there is None:
                write_atomic(path, text)
                click.echo(f"wrote {path}: {why}")
                changed = True
            elif remove and there is not None:
                path.unlink()
                click.echo(f"removed {path}")
                changed = True
        except OSError as error:
            raise TweedError(f"{path}: {error.strerror}") from None
    if changed:
        click.echo("they take effect after: udevadm control --reload; networkctl reload; nmcli general reload (those that you run)")
