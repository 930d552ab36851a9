"""A Redis URL must not carry the password: the URL is printed, kept in the run directory and shown in process lists."""

from urllib.parse import parse_qs, urlsplit


def password_problem(url: str) -> str | None:
    """What is wrong with `url`, said without the secret; None when nothing is wrong."""
    try:
        parts = urlsplit(url)
        secret = parts.password is not None or "password" in parse_qs(parts.query)
    except ValueError:
        return None  # whoever connects says what is wrong with it
    if not secret:
        return None
    return (
        "must not hold the password, which would be printed and kept with the run; put it into a file named by "
        "network.redis_password_file, or into the environment's SLUICE_REDIS_PASSWORD"
    )
