import errno
import threading

import pytest

from stylegan_inversion.remote.client import explain, progress_bar, report_downloads


def test_who_asks_hears_how_far_a_download_is() -> None:
    heard: list[tuple[int, int]] = []
    others: list[object] = []
    with report_downloads(lambda done, total: heard.append((done, total))):
        bar = progress_bar(500)(total=500, disable=True, desc="model.safetensors")
        received = progress_bar(500)(total=500, disable=True, desc="Downloading bytes")  # the same bytes once more
        thread = threading.Thread(target=lambda: others.append(progress_bar(9)(total=9, disable=True)))
        thread.start()  # another thread's downloads are not heard
        thread.join()
    other = others.pop()
    assert hasattr(other, "update")
    for progress in (bar, received, other):
        progress.update(2)
    bar.update(498)  # in whatever thread the client counts
    assert heard == [(2, 500), (500, 500)]


def test_what_the_listener_raises_ends_the_download() -> None:
    def leave(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with report_downloads(leave), pytest.raises(KeyboardInterrupt):
        progress_bar(5)(disable=True).update(1)


def test_a_file_without_an_end_is_ended() -> None:
    bar = progress_bar(5)(disable=True)
    bar.update(5)
    with pytest.raises(OSError, match="more bytes came than the 5 that the file has"):
        bar.update(1)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "The disk is full, so 'org/x' could not be kept: make room"),
        (PermissionError(errno.EACCES, "denied"), "the cache may not be written: give another `cache_dir`"),
        (OSError("something\nnew"), r"^'org/x' could not be fetched from the Hub: something new$"),
    ],
)
def test_faults_of_this_machine(error: OSError, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(explain(error, "org/x"))
