"""The server's own certificate. kubectl sends a bearer token over TLS only, so there is no plain HTTP.

`embedded` makes one for each server, or keeps one in a folder so that kubeconfigs outlive a restart; `kubeconfig`
carries it as the authority to trust.
"""

import datetime as dt
import ipaddress
import os
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFETIME = dt.timedelta(days=3650)
_CLOCK_SKEW = dt.timedelta(hours=1)
_CERTIFICATE, _KEY = "kubeapi.crt", "kubeapi.key"


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its private key, both PEM."""

    certificate: str
    key: str

    def context(self) -> ssl.SSLContext:
        """A server's TLS context with it."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        with tempfile.TemporaryDirectory(prefix="kubeapi-") as folder:
            self.write(Path(folder))
            context.load_cert_chain(Path(folder, _CERTIFICATE), Path(folder, _KEY))
        return context

    def write(self, folder: Path) -> None:
        """Write both files into `folder`; only their owner can read them."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in ((_CERTIFICATE, self.certificate), (_KEY, self.key)):
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(text)


def load_or_create(folder: Path, host: str) -> Certificate:
    """The certificate that is kept in `folder`, or a new one that is kept there from now on."""
    try:
        return Certificate((folder / _CERTIFICATE).read_text(), (folder / _KEY).read_text())
    except FileNotFoundError:
        created = create(host)
        created.write(folder)
        return created


def create(host: str) -> Certificate:
    """A new self-signed certificate for `host`, localhost and the loopback addresses."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "flexpert-local-kubeapi")])
    now = dt.datetime.now(dt.UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_names(host)), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Certificate(certificate.public_bytes(encoding).decode(), private.decode())


def _key_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _names(host: str) -> list[x509.GeneralName]:
    names = list(dict.fromkeys([host, "localhost", "127.0.0.1", "::1"]))
    return [_name(item) for item in names]


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
