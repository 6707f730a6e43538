"""Certificates and keys for processes that talk to each other over TLS, made with the `cryptography` package."""

import datetime
import ipaddress
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_DAY = datetime.timedelta(days=1)


class Authority(NamedTuple):
    """Who vouches for servers: its certificate, which everyone gets, and its private key, which nobody gets."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


class ServerFiles(NamedTuple):
    """The three files that a server is started with."""

    ca: Path
    certificate: Path
    key: Path


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _start_certificate(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey, ends: datetime.datetime):
    builder = x509.CertificateBuilder().subject_name(_name(subject)).issuer_name(_name(issuer))
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    # Clocks differ a little between machines: valid since yesterday, or longer if it has ended.
    return builder.not_valid_before(
        min(ends, datetime.datetime.now(datetime.timezone.utc)) - _DAY
    ).not_valid_after(ends)


def make_authority(name: str = "course authority", days: float = 30) -> Authority:
    """Make a certificate authority of one's own, valid for so many days."""
    key = ec.generate_private_key(ec.SECP384R1())
    builder = _start_certificate(name, name, key, datetime.datetime.now(datetime.timezone.utc) + days * _DAY)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign"), False
    )
    usage |= {
        "digital_signature": True,
        "key_cert_sign": True,
        "encipher_only": False,
        "decipher_only": False,
    }
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return Authority(builder.add_extension(identifier, critical=False).sign(key, hashes.SHA256()), key)


def issue_certificate(
    authority: Authority,
    folder: Path,
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1"),
    days: float = 30,
    name: str = "server",
) -> ServerFiles:
    """Issue a certificate and write it, with its key and the authority's certificate, to a folder.

    Parameters
    ----------
    authority : Authority
    folder : Path
    hosts : tuple of str
        The names and addresses by which others reach the server; a careful client refuses any other.
    days : float
        Validity from now; below 0 for a certificate that has expired.
    name : str
        Of the files: ``NAME.pem`` and ``NAME.key``, beside ``ca.crt``.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    ends = datetime.datetime.now(datetime.timezone.utc) + days * _DAY
    issuer = authority.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    builder = _start_certificate(hosts[0], issuer, key, ends)
    names = x509.SubjectAlternativeName([_host(host) for host in hosts])
    builder = builder.add_extension(names, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    certificate = builder.add_extension(signer, critical=False).sign(authority.key, hashes.SHA256())
    files = ServerFiles(folder / "ca.crt", folder / f"{name}.pem", folder / f"{name}.key")
    write_certificate(authority, files.ca)
    files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    _write_private_key(key, files.key, serialization.PrivateFormat.TraditionalOpenSSL)
    return files


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def write_certificate(authority: Authority, path: Path) -> Path:
    """Write an authority's certificate, the only thing of it that a site needs."""
    path.write_bytes(authority.certificate.public_bytes(serialization.Encoding.PEM))
    return path


def _write_private_key(
    key: ec.EllipticCurvePrivateKey, path: Path, form: serialization.PrivateFormat
) -> None:
    path.touch(mode=0o600)  # readable by its owner only, before there is anything to read
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))


def make_site_key(path: Path) -> Path:
    """Make a site's key pair: the private key at `path`, and beside it the public key, whose path is returned."""
    key, public = ec.generate_private_key(ec.SECP384R1()), path.with_suffix(".pub")
    _write_private_key(key, path, serialization.PrivateFormat.OpenSSH)
    form = serialization.PublicFormat.OpenSSH
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.OpenSSH, form))
    return public


def check_server_files(files: ServerFiles) -> None:
    """Raise a ValueError that says what to do if a certificate has expired or is not the authority's."""
    authority, certificate = (x509.load_pem_x509_certificate(path.read_bytes()) for path in files[:2])
    for name, one in (("authority's", authority), ("server's", certificate)):
        if one.not_valid_after_utc < datetime.datetime.now(datetime.timezone.utc):
            raise ValueError(
                f"the {name} certificate expired on {one.not_valid_after_utc:%Y-%m-%d}: issue a new one"
            )
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception as error:  # a wrong signature and a wrong name raise different errors
        raise ValueError(
            "the server's certificate is not this authority's: issue it with this one"
        ) from error
