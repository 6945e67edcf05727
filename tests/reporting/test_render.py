"""Pages name no folder of the machine that they were made on."""

import time

import pytest

from leukemia_dl.reporting import render


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no file /home/alice/cells/hem/a b.png", "no file .../a b.png"),
        ("C:\\Users\\alice\\x.png: odd", ".../x.png: odd"),
        ("~/cells/x.bmp", ".../x.bmp"),
        ("see https://a.org/b/c and 10.7937/tcia.2019", "see https://a.org/b/c and 10.7937/tcia.2019"),
        ("hem/all, 3 / 4", "hem/all, 3 / 4"),
    ],
)
def test_folders_of_a_machine_are_left_out_of_texts(text, shown):
    assert render.one_line(text) == shown


@pytest.mark.parametrize("piece", ["/", "\\", "/a", '"/', "~/", "C:/", "/a//", " /"])
def test_hiding_folders_takes_time_in_proportion_to_the_text(piece):
    """20.40: 400,000 slashes in a setting took minutes, since the time grew with their square."""
    started = time.process_time()
    render.settings_without_folders('weights = "' + 400_000 * piece + "\n")
    assert time.process_time() - started < 10


def test_settings_name_no_folder():
    said = render.settings_without_folders(
        'root = "/a/b"\nimages_root = "../c"\nweights = "../alice/w.h5"\nurl = "https://a.org/b"\n'
        'vgg16 = "bob/v.hdf5"\n'
    )
    assert said == 'root = "..."\nimages_root = "..."\nweights = "..."\nurl = "https://a.org/b"\nvgg16 = "..."\n'
