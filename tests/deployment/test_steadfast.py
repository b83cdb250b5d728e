"""What a node says when the SuperLink refuses it, by the date of the answer and its own clock."""

import pytest

from simulations.deployment.steadfast import refusal, whole

NOON = "Fri, 01 May 2026 12:00:00 GMT"
AT_NOON = 1777636800.0


@pytest.mark.parametrize(
    ("ahead", "said"),
    [
        (7200.0, "7200 s ahead of"),
        (6.0, "6 s ahead of"),
        (-400.0, "400 s behind"),
        (-300.0, "does not know this node's key"),
        (4.0, "does not know this node's key"),
    ],
)
def test_a_refused_node_says_whether_its_clock_or_its_key_is_wrong(ahead, said):
    assert said in refusal(NOON, AT_NOON + ahead)


@pytest.mark.parametrize("date", [None, "", "yesterday"])
def test_an_answer_without_a_date_blames_the_key(date):
    assert "register it" in refusal(date, AT_NOON)


def test_what_a_full_disk_left_of_an_app_is_never_taken_for_it(tmp_path):
    full = True

    def plain(content, install_dir, skip_prompt):
        """Copy file by file, as Flower does."""
        place = install_dir / "apps" / "mine.1.0.0.2d711642"
        place.mkdir(parents=True)
        if full:
            raise OSError(28, "No space left on device")
        (place / "pyproject.toml").write_bytes(content)
        return place

    install = whole(plain, tmp_path)
    with pytest.raises(OSError, match="No space"):
        install(b"x")
    assert list(tmp_path.iterdir()) == []
    full = False
    first = install(b"x")
    full = True  # nothing is written where it is there
    assert install(b"x") == first
    assert (first / "pyproject.toml").read_bytes() == b"x"
    assert [place.name for place in tmp_path.iterdir()] == ["apps"]
