from __future__ import annotations

import codecs

import pytest

from codetr_client.text import decode_text, markdown, printable


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[red]dog[/red] :smile: [/]", id="what rich would take for markup"),
        pytest.param("Straßenschild, 道路標識, דרך, سڑک", id="other scripts"),
        pytest.param("می\u200cروم 👩\u200d🚒 ⚠️", id="joiners"),
        pytest.param("a\u00a0b\u3000c", id="other spaces"),
        pytest.param("\\ \" ' % {x}", id="punctuation"),
        pytest.param("", id="nothing"),
    ],
)
def test_text_is_shown_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m", id="terminal's colours"),
        pytest.param("\x9b2J", r"\x9b2J", id="terminal's C1 sequence"),
        pytest.param("\x1b]8;;http://x\x07link\x1b]8;;\x07", r"\x1b]8;;http://x\x07link\x1b]8;;\x07", id="a link"),
        pytest.param("a\rb\nc\td\x00\x7f\b", r"a\rb\nc\td\x00\x7f\x08", id="control characters"),
        pytest.param("exe.\u202egnp.jpg", r"exe.\u202egnp.jpg", id="right to left override"),
        pytest.param("a\u200fb\u2066c\u061cd", r"a\u200fb\u2066c\u061cd", id="marks of direction"),
        pytest.param("caf\udce9.jpg", r"caf\udce9.jpg", id="a byte of a file name"),
        pytest.param("a\u2028b\u2029c", r"a\u2028b\u2029c", id="line separators"),
        pytest.param("a\ufeffb", r"a\ufeffb", id="byte order mark"),
        pytest.param(ValueError("x\n"), r"x\n", id="an error"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: object, shown: str) -> None:
    assert printable(text) == shown
    shown.encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("a|b", r"a\|b", id="the end of a cell"),
        pytest.param("a\nb", r"a\\nb", id="the end of a row"),  # a backslash that stands for itself
        pytest.param("*a* `b` [c](d) <e> ~f~ \\", r"\*a\* \`b\` \[c\](d) \<e\> \~f\~ " + "\\\\", id="marks"),
        pytest.param("_a_ codetr_detector", r"\_a\_ codetr_detector", id="underscores within words stay"),
        pytest.param("12.3 ± 4%", "12.3 ± 4%", id="figures stay"),
    ],
)
def test_markdown_shows_text_as_it_is(text: str, shown: str) -> None:
    assert markdown(text) == shown


@pytest.mark.parametrize("mark", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["Unix", "Windows", "old Macintosh"])
def test_files_of_every_editor_are_read(mark: str, end: str) -> None:
    assert decode_text(f"Straße{end}{end}道".encode(mark)) == "Straße\n\n道"
    assert decode_text(codecs.BOM_UTF16_BE + f"a{end}b".encode("utf-16-be")) == "a\nb"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("Straße".encode("cp1252"), r"not UTF-8 text \(byte 4\); save it as UTF-8", id="Windows-1252"),
        pytest.param("a".encode("utf-16-le"), r"not UTF-8 text \(a null character at 1\)", id="UTF-16 without a mark"),
        pytest.param(codecs.BOM_UTF16_LE + b"a", r"not UTF-16 text \(byte", id="half a character"),
        pytest.param(b"PK\x03\x04\x00", "a null character at 4", id="no text"),
    ],
)
def test_what_is_no_text_is_told(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_text(content)
