"""Certificates for tests: an authority, and what it signs, written as the keys of a Secret are mounted."""

import datetime
import ipaddress
import json
import secrets
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from flexpert_proto import names

DAY = datetime.timedelta(days=1)


class Authority:
    """Signs certificates."""

    def __init__(self, name: str = "test authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._build(self._name, self._key, DAY, authority=True).public_bytes(PEM)

    def issue(self, folder: Path, *subjects: str, lasts: datetime.timedelta = DAY) -> Path:
        """Write `tls.crt`, `tls.key` and this authority's `ca.crt` for DNS names or addresses into a folder."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subjects[0])])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tls.crt").write_bytes(self._build(subject, key, lasts, subjects=subjects).public_bytes(PEM))
        (folder / "tls.key").write_bytes(
            key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        (folder / "ca.crt").write_bytes(self.certificate)
        return folder

    def _build(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        lasts: datetime.timedelta,
        *,
        subjects: tuple[str, ...] = (),
        authority: bool = False,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 2 * DAY)
            .not_valid_after(now + lasts)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if subjects:
            builder = builder.add_extension(x509.SubjectAlternativeName(list(map(_general, subjects))), critical=False)
        return builder.sign(self._key, hashes.SHA256())


PEM = serialization.Encoding.PEM


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def pool_credentials(folder: Path, authority: Authority, pool: str = "tiny-moe", namespace: str = "default") -> Path:
    """What all members of a pool are given: a certificate for its name, and its key."""
    authority.issue(folder, names.pool_identity(pool, namespace))
    (folder / names.POOL_KEY_KEY).write_text(secrets.token_hex(32) + "\n")
    return folder


def pool_environment(folder: Path, pool: str = "tiny-moe", namespace: str = "default") -> dict[str, str]:
    """The variables by which a process knows its pool and these files."""
    return {
        names.ENV_POOL_CREDENTIALS: str(folder),
        names.ENV_POOL: json.dumps({"uid": "u-1", "name": pool, "namespace": namespace}),
    }
