"""What was named a secret is in no line of the log, whatever it came in by."""

import subprocess
import sys

import pytest

from sluice.telemetry.redaction import MASK, never_print, redacted

PRINTS = """
import logging, structlog
from sluice.telemetry.logs import configure_logs
from sluice.telemetry.redaction import never_print
configure_logs(service="x", fmt={fmt!r})
never_print('hunter2"two words')
log = structlog.get_logger()
log.info("connecting", url="redis://user:pa55word@host/0", password='hunter2"two words')
log.info("nested", settings={{"deep": ['hunter2"two words']}})
logging.getLogger("redis").warning("cannot use %s", 'hunter2"two words')
completion = "what the policy wrote"
try:
    raise ValueError('wrong: hunter2"two words')
except ValueError:
    log.exception("failed")
"""


@pytest.mark.parametrize("fmt", ["console", "json"])
def test_no_line_of_a_process_shows_a_secret(fmt: str) -> None:
    done = subprocess.run([sys.executable, "-c", PRINTS.format(fmt=fmt)], capture_output=True, text=True, check=True)
    assert done.stderr.count(MASK) >= 5
    for secret in ("hunter2", "two words", "pa55word"):
        assert secret not in done.stderr
    assert "Traceback" in done.stderr
    assert "the policy" not in done.stderr, "a traceback shows no variables: they may hold prompts and completions"
    for event in ("connecting", "nested", "cannot use", "failed", "host/0"):
        assert event in done.stderr


def test_the_time_grows_with_the_text_and_not_faster() -> None:
    for text in ("x://" + ":" * 1_000_000, "x://" * 250_000, "://a:b" * 200_000):
        assert redacted(text) == text
    assert redacted("x://" + "a:" * 500_000 + "@host") == f"x://{MASK}@host"


def test_a_url_without_a_password_and_a_word_that_is_too_short_stay_as_they_are() -> None:
    never_print("the")
    for text in ("redis://host:6379/0 is the one", "unix:///tmp/a@b:c", "a@b:c ://"):
        assert redacted(text) == text


def test_the_user_goes_with_the_password() -> None:
    assert redacted("rediss://me:s3cret@host:1/0 and http://:k@h") == f"rediss://{MASK}@host:1/0 and http://{MASK}@h"
