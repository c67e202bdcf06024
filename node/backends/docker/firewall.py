"""The packet filter's rules that cut containers off from this host.

Docker keeps containers of different networks apart, and `enable_icc=false` those of one. It does nothing about the host
itself: whatever listens on an address of this machine is reached by the bridge's gateway address. And in the standard
profile a container would reach link-local addresses, where clouds tell their machines' secrets. So a chain of the
node's own drops what comes from its bridges for this host or for a link-local address.

It is called from PREROUTING of the `mangle` table, before any address is translated, because there one chain sees both
what goes to the host and what goes through it, and because the engine writes to other tables only: the rules need no
order among the engine's, and survive its restart. What others put into the table is never touched.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from node.backends.docker.plan import Mark

LOCK_S = 5
"""Longest wait for another program that changes the rules."""

COMMAND_S = LOCK_S + 5
"""Longest time of one command."""

PLACES = ("/usr/sbin", "/sbin")
"""Where the commands are; not on every user's PATH."""

IPV6 = Path("/proc/net/if_inet6")
"""There exactly if this host speaks IPv6."""

BRIDGED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
"""Whether rules hold for what stays on a bridge. Without, `enable_icc=false` keeps no two containers apart."""

ANSWERS = "-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN"

# UNICAST is what is routed to somebody else: not an address of this host, no broadcast, no multicast.
RULES = {
    "iptables": (ANSWERS, "-m addrtype ! --dst-type UNICAST -j DROP", "-d 169.254.0.0/16 -j DROP"),
    "ip6tables": ("-j DROP",),
}
"""By command, in order. The bridges have IPv4 only, so of IPv6 nothing is let through."""


class _Refused(Exception):
    """The packet filter said no; the text is what it said."""


def bridge(mark: Mark, *, internet: bool) -> str:
    """The name of a node's bridge on this host, at most 15 characters: `stk3f9a01c7n`."""
    return f"{_stem(mark)}{'n' if internet else 'i'}"


def _stem(mark: Mark) -> str:
    return "stk" + hashlib.sha256(mark.name("").encode()).hexdigest()[:8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Firewall:
    """The rules of one node, by its bridges' names: they may be there before and after the bridges. Its calls block."""

    mark: Mark

    def hold(self) -> str:
        """Have the rules in force: nothing, or in words why they are not. Changes nothing when they are."""
        return _refusals(self._hold) or _unfiltered()

    def may(self) -> str:
        """Whether this process may set rules: nothing, or in words why not. Changes nothing."""
        return _refusals(lambda command: self._mangle(command, "-S PREROUTING"))

    def lift(self) -> None:
        """Remove them, as far as possible."""
        for command in RULES:
            while self._accepts(command, f"-D PREROUTING {self._jump}"):
                pass
            if self._accepts(command, f"-F {self._chain}"):
                self._accepts(command, f"-X {self._chain}")

    def by_hand(self) -> list[str]:
        """The commands with which an operator sets the rules."""
        lines = []
        for command, rules in RULES.items():
            lines.append(f"{command} -t mangle -N {self._chain}")
            lines += [f"{command} -t mangle -A {self._chain} {rule}" for rule in rules]
            lines.append(f"{command} -t mangle -I PREROUTING {self._jump}")
        return lines

    def _hold(self, command: str) -> None:
        wanted = [f"PREROUTING {self._jump}", *(f"{self._chain} {rule}" for rule in RULES[command])]
        if not all(self._accepts(command, f"-C {rule}") for rule in wanted):
            self._set(command)

    def _set(self, command: str) -> None:
        """The whole chain in one transaction, then the way to it, in front of what others have there."""
        rules = [f"-A {self._chain} {rule}" for rule in RULES[command]]
        lines = ["*mangle", f":{self._chain} - [0:0]", *rules, "COMMIT", ""]
        _run(f"{command}-restore", "--noflush", f"--wait={LOCK_S}", stdin="\n".join(lines))
        if not self._accepts(command, f"-C PREROUTING {self._jump}"):
            self._mangle(command, f"-I PREROUTING 1 {self._jump}")

    def _accepts(self, command: str, rule: str) -> bool:
        try:
            self._mangle(command, rule)
        except _Refused:
            return False
        return True

    def _mangle(self, command: str, rule: str) -> None:
        _run(command, f"--wait={LOCK_S}", "-t", "mangle", *rule.split())

    @property
    def _chain(self) -> str:
        return f"STOKER-{_stem(self.mark).removeprefix('stk')}"

    @property
    def _jump(self) -> str:
        return f"-i {_stem(self.mark)}+ -j {self._chain}"


def _unfiltered() -> str:
    try:
        if BRIDGED.read_text().strip() == "1":
            return ""
    except OSError:
        return "containers reach each other, because the kernel's module br_netfilter is not loaded"
    return "containers reach each other, because net.bridge.bridge-nf-call-iptables is 0: set it to 1"


def _refusals(work: Callable[[str], None]) -> str:
    """Do it with the command of each version of IP that this host speaks; what they refused."""
    told = []
    for command in RULES:
        if command == "ip6tables" and not IPV6.exists():
            continue
        try:
            work(command)
        except _Refused as refused:
            told.append(f"{command}: {refused}")
    return "; ".join(told)


def _run(program: str, *arguments: str, stdin: str = "") -> None:
    found = shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *PLACES]))
    if found is None:
        raise _Refused("it is not installed")
    command = [found, *arguments]
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    except subprocess.TimeoutExpired:
        raise _Refused(f"it did not end within {COMMAND_S} s") from None
    except OSError as error:
        raise _Refused(error.strerror or str(error)) from None
    if done.returncode != 0:
        raise _Refused(" ".join(done.stderr.split())[:300] or f"exit code {done.returncode}")
