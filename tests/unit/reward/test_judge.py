"""What the judge reads and refuses; the calls themselves are in tests/integration/test_reward_graders.py."""

import pytest

from services.reward.verifiers.judge import Settings, _opener


def settings(**changed):
    return Settings(**{"url": "http://127.0.0.1:1/v1", "model": "m", **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"url": "ftp://x"}, "url: must be http://HOST"),
        ({"url": "http://"}, "url: must be http://HOST"),
        ({"template": "{prompt}"}, r"template: must have \{completion\}"),
        ({"template": "{completion} {secret}"}, r"template: must have .*'secret'"),
        ({"template": "{completion} {"}, "write {{ and }} for braces"),
        ({"score_pattern": "("}, "score_pattern: must be a regular expression"),
        ({"score_pattern": "Score"}, "score_pattern: must have one group, got 0"),
        ({"timeout_s": 0}, "timeout_s: must be > 0"),
        ({"best_score": -1}, "best_score: must be > 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        settings(**changed)


@pytest.mark.parametrize(
    ("url", "proxied"),
    [("http://127.0.0.1:8000/v1", False), ("http://[::1]:8000/v1", False), ("http://judge:1/v1", True)],
)
def test_only_a_judge_elsewhere_is_reached_through_the_environments_proxy(monkeypatch, url, proxied):
    monkeypatch.setenv("http_proxy", "http://proxy:1")
    _opener.cache_clear()
    handlers = {type(handler).__name__: handler for handler in _opener(url).handlers}
    assert ("ProxyHandler" in handlers) is proxied
    _opener.cache_clear()
