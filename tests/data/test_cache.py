"""Files that appear whole, and folders for one process at a time."""

import pytest

from steerable.data.cache import alone_in, write_whole
from steerable.errors import ConfigError


def test_a_folder_is_for_one_at_a_time(tmp_path):
    folder = tmp_path / "new"
    with alone_in(folder, "job"):
        expected = (
            rf"{folder} is in use by another job; expected .*: choose another --out, or wait until that job"
        )
        with pytest.raises(ConfigError, match=expected), alone_in(folder, "job"):
            pass
    with pytest.raises(RuntimeError), alone_in(folder, "job"):
        raise RuntimeError
    with alone_in(folder, "job"):
        pass


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a" / "file"
    write_whole(path, lambda partial: partial.write_text("old"))

    def breaks(partial):
        partial.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, breaks)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
