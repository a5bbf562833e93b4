import pytest
from jaxtyping import config


@pytest.fixture
def as_users_run_it(monkeypatch):
    """Annotations are not executed, so that the library's own errors are what is seen."""
    monkeypatch.setattr(config, "jaxtyping_disable", True)
