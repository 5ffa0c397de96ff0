"""What ruamel.yaml says of broken YAML, in our own sentences."""

from __future__ import annotations

from typing import Any

from ruamel.yaml.error import MarkedYAMLError

# A part of the parser's complaint, and the sentence that stands for it. The first that fits counts.
_SENTENCES = (
    ("a tag", "tags such as `!this` have no meaning in a pipeline; remove it, or quote a text that begins with `!`"),
    ("a directive", "a line that begins with `%` is a YAML directive, which a pipeline does not need; remove it"),
    ("character '\\t'", "a tab stands where YAML allows only spaces; indent with spaces"),
    ("that cannot start any token", "a text cannot begin with this character; put quotes around it"),
    (
        "mapping values are not allowed",
        "a `key: value` cannot stand here; check the indentation, or quote a text with `: `",
    ),
    ("could not find expected ':'", "this line is neither `key: value` nor `- item`; is a `:` missing?"),
    ("sequence entries are not allowed", "a `- item` cannot stand here; begin the list on a line of its own"),
    ("found unexpected end of stream", "the quote that opens here is never closed"),
    ("found unexpected document separator", "the quote that opens here is not closed before `---` or `...`"),
    ("<stream end>", "the file ends here, and a `[` or `{` above is not closed"),
    (
        "expected ',' or ']'",
        "the `[` that opens here is not closed, or a comma is missing in its list; quote a text with `${{ }}`",
    ),
    (
        "expected ',' or '}'",
        "the `{` that opens here is not closed, or a comma is missing in it; quote a text with `${{ }}`",
    ),
    ("expected <block end>", "this does not fit the indentation above; align it with its neighbours"),
    ("unknown escape character", "this `\\` begins no escape that YAML knows; write `\\\\`, or use single quotes"),
    ("hexdecimal numbers", "this `\\` escape lacks hexadecimal digits; complete it, or use single quotes"),
    ("<document start>", "something stands here after the end of the document; a pipeline is one document"),
    (
        "block scalar",
        "the line of a `|` or `>` may hold only `+`, `-` or a digit besides; put the text on the next line",
    ),
    ("while scanning an anchor", "an anchor needs a name of letters and digits; quote a text that begins with `&`"),
    ("while scanning an alias", "an alias needs a name of letters and digits; quote a text that begins with `*`"),
)

# Complaints that are about where something was opened, not about where the parser noticed.
_OPENERS = ("unexpected end of stream", "unexpected document separator", "expected ',' or")


def sentence_of(error: MarkedYAMLError) -> tuple[Any, str]:
    """The mark to point at (None: unknown) and a sentence."""
    problem = str(error.problem or "")
    whole = f"{problem} {error.context or ''}"
    opener = error.context_mark is not None and any(each in problem for each in _OPENERS)
    mark = error.context_mark if opener else error.problem_mark or error.context_mark
    for part, sentence in _SENTENCES:
        if part in whole:
            return mark, sentence
    return mark, "from here on this is not valid YAML; check indentation, quotes and brackets"
