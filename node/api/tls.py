"""HTTPS by configuration: the certificate and the key that the server shows."""

import ssl
from pathlib import Path

from node.config import Server
from node.errors import StokerError


def context(settings: Server) -> ssl.SSLContext | None:
    """None when the configuration names no certificate. Raises `StokerError` that names the setting and the file."""
    cert, key = settings.tls_cert, settings.tls_key
    if cert is None or key is None:
        if cert or key:
            given, missing = ("tls_cert", "tls_key") if cert else ("tls_key", "tls_cert")
            raise StokerError(f"server.{given} is given without server.{missing}: HTTPS needs both")
        return None
    _check_readable("tls_cert", cert)
    _check_readable("tls_key", key)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        tls.load_cert_chain(cert, key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        reason = _WORDS.get(getattr(error, "reason", ""), str(error))
        raise StokerError(f"server.tls_cert {cert} with server.tls_key {key}: {reason}") from None
    return tls


_WORDS = {
    "KEY_VALUES_MISMATCH": "the key is not the certificate's",
    "NO_START_LINE": "not a PEM file",
    None: "not a certificate and a key in PEM",
}


def _check_readable(name: str, file: Path) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise StokerError(f"server.{name} {file}: {error.strerror}") from None


def _no_password() -> str:
    raise ValueError("the key is encrypted; give one without a password")
